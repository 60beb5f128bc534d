//! The part `docs`, after the documentation is generated: its links lead somewhere.
//!
//! The pages are read as docs.rs shows them. An address of this crate on docs.rs stands for the
//! generated page; a host that is not on the list is an error, and nothing is fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, ensure};
use html5gum::{Token, Tokenizer};

use crate::features;

/// The folders of the published crates' pages, and their names on docs.rs.
const CRATES: &[(&str, &str)] = &[
    ("idempotency", "idempotency"),
    ("idempotency_kafka", "idempotency-kafka"),
    ("idempotency_nats", "idempotency-nats"),
    ("idempotency_rabbitmq", "idempotency-rabbitmq"),
    ("idempotency_sqs", "idempotency-sqs"),
    ("idempotent_macros", "idempotent-macros"),
    ("idempotent_runtime", "idempotent-runtime"),
];
/// Hosts that links may lead to.
const HOSTS: &[&str] = &[
    "crates.io",
    "datatracker.ietf.org",
    "doc.rust-lang.org",
    "docs.aws.amazon.com",
    "docs.rs",
    "example.com",
    "github.com",
    "rust-lang.org",
    "semver.org",
    "www.postgresql.org",
    "www.rfc-editor.org",
    "www.sqlite.org",
];
/// Parts of a page that show other crates' documentation, with links that only work there: their
/// traits, which all types have.
const NOT_OURS: &[&[u8]] = &[b"blanket-implementations-list", b"synthetic-implementations-list"];
/// The page that crates.io shows.
const README: &str = "README.md";

/// Fails if a link of the generated documentation, or of the page on crates.io, leads nowhere.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = features::target_directory()?.join("doc");
    let mut pages = Pages { root: &root, read: BTreeMap::new() };
    let (mut count, mut broken) = (0, Vec::new());
    for (folder, _) in CRATES {
        for file in html_files(&root.join(folder))? {
            let links = pages.page(&file)?.links.clone();
            count += links.len();
            for link in links {
                if let Some(reason) = pages.broken(&file, &link)? {
                    broken.push(format!("{}: {link}: {reason}", file.display()));
                }
            }
        }
    }
    let readme = fs::read_to_string(README).context("the README cannot be read")?;
    broken.extend(relative(&readme).map(|link| format!("{README}: {link}: not on crates.io")));
    // Fewer would mean that links are not found, rather than that there are none.
    ensure!(count > 1000, "only {count} links were found in {}", root.display());
    ensure!(broken.is_empty(), "{} links lead nowhere:\n{}", broken.len(), broken.join("\n"));
    println!("{count} links lead somewhere");
    Ok(())
}

/// Returns the pages in `folder`, in order.
fn html_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut left, mut files) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(place) = left.pop() {
        let entries =
            fs::read_dir(&place).with_context(|| format!("{} cannot be read", place.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "html") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// One page: its links, and the places in it that links can lead to.
#[derive(Debug, Default)]
struct Page {
    links: BTreeSet<String>,
    places: BTreeSet<String>,
    /// The page to which this one leads on by itself.
    leads_on: Option<String>,
}

impl Page {
    fn of(html: &str) -> Self {
        let mut page = Self::default();
        let mut is_script = false;
        // The tag of a part that is not ours, and how many of its kind are open.
        let mut foreign: Option<(Vec<u8>, usize)> = None;
        for Ok(token) in Tokenizer::new(html) {
            match token {
                Token::StartTag(tag) if !is_script => {
                    is_script = tag.name.as_slice() == b"script";
                    if let Some((_, open)) = foreign.as_mut().filter(|(name, _)| *name == *tag.name)
                    {
                        *open += 1;
                    }
                    for (name, value) in &tag.attributes {
                        if NOT_OURS.contains(&value.value.as_slice()) {
                            foreign = Some((tag.name.to_vec(), 1));
                        }
                        let value = String::from_utf8_lossy(&value.value).into_owned();
                        if let (b"content", Some((_, next))) =
                            (name.as_slice(), value.split_once(";URL="))
                        {
                            page.leads_on = Some(next.to_owned());
                        }
                        match name.as_slice() {
                            b"id" | b"name" => page.places.insert(value),
                            b"href" | b"src" if !is_script && foreign.is_none() => {
                                page.links.insert(value)
                            }
                            _ => continue,
                        };
                    }
                }
                Token::EndTag(tag) => {
                    is_script &= tag.name.as_slice() != b"script";
                    if let Some((name, open)) = &mut foreign
                        && *tag.name == *name
                    {
                        *open -= 1;
                        if *open == 0 {
                            foreign = None;
                        }
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The generated pages, each read once.
struct Pages<'a> {
    root: &'a Path,
    read: BTreeMap<PathBuf, Page>,
}

impl Pages<'_> {
    fn page(&mut self, file: &Path) -> anyhow::Result<&Page> {
        if !self.read.contains_key(file) {
            let html = fs::read_to_string(file)
                .with_context(|| format!("{} cannot be read", file.display()))?;
            self.read.insert(file.to_path_buf(), Page::of(&html));
        }
        Ok(&self.read[file])
    }

    /// Returns the reason why `link` on the page `from` leads nowhere, if it does.
    fn broken(&mut self, from: &Path, link: &str) -> anyhow::Result<Option<String>> {
        let (address, place) = link.split_once('#').unwrap_or((link, ""));
        let target = match own(address) {
            Some(path) => self.root.join(path),
            None if address.contains("://") => {
                let host = address.split('/').nth(2).unwrap_or_default();
                // A server that the reader starts.
                let is_known = HOSTS.contains(&host) || host.starts_with("127.0.0.1");
                return Ok((!is_known).then(|| format!("{host} is not an allowed host")));
            }
            None if address.starts_with("data:") || address.starts_with("mailto:") => {
                return Ok(None);
            }
            None if address.is_empty() => from.to_path_buf(),
            None => resolved(from, address.split('?').next().unwrap_or_default()),
        };
        if !target.is_file() {
            return Ok(Some(format!("{} is missing", target.display())));
        }
        // Lines of source code get their places when the page is shown.
        let is_source = target.starts_with(self.root.join("src"));
        if place.is_empty() || is_source || self.page(&target)?.places.contains(place) {
            return Ok(None);
        }
        // The page of an item's private path leads on to its public one, with the place.
        if let Some(public) = self.page(&target)?.leads_on.clone() {
            return self.broken(&target, &format!("{public}#{place}"));
        }
        Ok(Some(format!("{} has no place `{place}`", target.display())))
    }
}

/// Returns the path of the generated page, if the address on docs.rs is one of this project's.
fn own(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("https://docs.rs/")?;
    CRATES.iter().find_map(|(folder, name)| {
        let path = path.strip_prefix(name)?;
        match path.strip_prefix("/latest/") {
            Some("") => Some(Path::new(folder).join("index.html")),
            Some(path) if path.ends_with('/') => Some(Path::new(path).join("index.html")),
            Some(path) => Some(PathBuf::from(path)),
            // The address of the crate leads to its first page.
            None => matches!(path, "" | "/").then(|| Path::new(folder).join("index.html")),
        }
    })
}

/// Returns the file at the relative address `address` of the page `from`.
fn resolved(from: &Path, address: &str) -> PathBuf {
    let mut path = from.parent().unwrap_or(from).to_path_buf();
    for component in Path::new(address).components() {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

/// Returns the links of a page of Markdown that are relative to the repository, which crates.io
/// does not show.
fn relative(markdown: &str) -> impl Iterator<Item = &str> {
    let inline = markdown.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let references = markdown.lines().filter_map(|line| {
        line.strip_prefix('[')?.split_once("]: ").map(|(_, address)| address.trim())
    });
    inline.chain(references).filter(|address| !address.contains("://") && !address.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Page, Pages, own, relative, resolved};

    #[test]
    fn links_and_places_are_read_from_tags_alone() {
        let page = Page::of(r#"<a href="b.html#x">&lt;a href="c"&gt;</a><h2 id="here">"#);
        assert_eq!(page.links.iter().collect::<Vec<_>>(), ["b.html#x"]);
        assert_eq!(page.places.iter().collect::<Vec<_>>(), ["here"]);
    }

    #[test]
    fn scripts_and_the_traits_of_other_crates_are_left_out() {
        let page = Page::of(
            r#"<script src="a.js">f('<a href="b">')</script><div id="blanket-implementations-list">
            <div id="f"><a href="c"></a></div><a href="d"></a></div><a href="e"></a>"#,
        );
        assert_eq!(page.links.iter().collect::<Vec<_>>(), ["e"]);
        assert!(page.places.contains("f"), "{:?}", page.places);
    }

    #[test]
    fn a_link_to_a_missing_page_place_or_host_is_broken() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let root = folder.path();
        fs::create_dir_all(root.join("idempotency/docs"))?;
        let page = root.join("idempotency/index.html");
        fs::write(&page, "<h1 id=top>")?;
        fs::write(root.join("idempotency/docs/index.html"), "<h1 id=page>")?;
        let mut pages = Pages { root, read: std::collections::BTreeMap::new() };
        for link in [
            "docs/index.html#page",
            "#top",
            "https://docs.rs/idempotency",
            "https://docs.rs/idempotency/latest/idempotency/docs/index.html#page",
            "https://docs.rs/serde",
        ] {
            assert_eq!(pages.broken(&page, link)?, None, "{link}");
        }
        for link in [
            "docs/other.html",
            "docs/index.html#other",
            "#other",
            "docs/redis.md",
            "https://docs.rs/idempotency/latest/idempotency/docs/index.html#other",
            "https://docs.rs/idempotency/latest/idempotency/other/index.html",
            "https://unknown.example/page",
        ] {
            assert!(pages.broken(&page, link)?.is_some(), "{link}");
        }
        Ok(())
    }

    #[test]
    fn addresses_on_docs_rs_are_those_of_the_generated_pages() {
        let path = |address| own(address).map(|path| path.display().to_string());
        let first = Some("idempotency/index.html".to_owned());
        assert_eq!(path("https://docs.rs/idempotency"), first);
        assert_eq!(path("https://docs.rs/idempotency/latest/idempotency/"), first);
        assert_eq!(path("https://docs.rs/idempotent"), None);
        assert_eq!(path("https://docs.rs/idempotency-test"), None);
    }

    #[test]
    fn a_relative_address_begins_at_its_page() {
        let from = Path::new("doc/idempotency/http/index.html");
        assert_eq!(resolved(from, "../index.html"), PathBuf::from("doc/idempotency/index.html"));
        assert_eq!(resolved(from, "./a.html"), PathBuf::from("doc/idempotency/http/a.html"));
    }

    #[test]
    fn crates_io_shows_no_file_of_the_repository() {
        let page = "[a](docs/a.md), [b](https://docs.rs/b), [c](#c)\n\n[d]: docs/d.md\n[e]: https://e.org\n";
        assert_eq!(relative(page).collect::<Vec<_>>(), ["docs/a.md", "docs/d.md"]);
    }
}
