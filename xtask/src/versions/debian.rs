//! Servers from other releases of Debian, unpacked and not installed. They bring their C library,
//! and are started with its loader.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, bail};

use super::folder::filled;
use crate::command::Command;

/// Packages of one folder.
struct Release {
    folder: &'static str,
    suites: &'static [&'static str],
    packages: &'static str,
}

/// Servers with the libraries that they are linked with. Other dependencies of their packages are
/// only needed to install them.
const RELEASES: [Release; 2] = [
    Release {
        folder: "trixie",
        suites: &["trixie"],
        packages: "mariadb-server-core mariadb-client-core pgbouncer redis-server redis-tools \
                   libaio1t64 libatomic1 libaudit1 libbsd0 libc6 libcap-ng0 libcap2 libcares2 libcrypt1 libedit2 \
                   libevent-2.1-7t64 libgcc-s1 libjemalloc2 liblzf1 libmd0 libncurses6 libnuma1 libpam0g libpcre2-8-0 \
                   libssl3t64 libstdc++6 libsystemd0 libtinfo6 liburing2 libzstd1 zlib1g",
    },
    Release {
        folder: "bookworm-backports",
        suites: &["bookworm", "bookworm-backports"],
        packages: "valkey-server valkey-tools \
                   libatomic1 libc6 libcap2 libgcc-s1 libgcrypt20 libgpg-error0 libjemalloc2 liblz4-1 liblzf1 liblzma5 \
                   libssl3 libsystemd0 libzstd1",
    },
];

/// Part of the recipe: raised when the same packages are unpacked in another way.
const REVISION: u32 = 1;

/// The keys with which Debian signs.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The extension of a program that needs the loader, behind the script that replaces it.
const BEHIND: &str = "elf";

/// Returns the folders that [`provide`] fills.
#[cfg(test)]
pub(super) fn folders() -> impl Iterator<Item = &'static str> {
    RELEASES.iter().map(|release| release.folder)
}

/// Returns the address of Debian's archive in the machine's own list of sources.
pub(super) fn archive() -> Result<String, &'static str> {
    let format = "$(CREATED_BY) $(ORIGIN) $(LABEL) $(REPO_URI)";
    let targets = Command::program("apt-get", "indextargets --format")
        .with_argument(String::from(format))
        .output();
    let Ok(targets) = targets else {
        return Err("they are packages of Debian, and there is no apt-get");
    };
    let targets = String::from_utf8_lossy(&targets);
    let address = targets.lines().find_map(|line| line.strip_prefix("Packages Debian Debian "));
    address
        .map(String::from)
        .ok_or("they are packages of Debian, of which the machine's list of sources has no archive")
}

/// Unpacks what is not yet in `servers`.
pub(super) fn provide(servers: &Path) -> anyhow::Result<()> {
    for release in &RELEASES {
        let folder = servers.join(release.folder);
        let recipe = format!("{REVISION}\n{}\n{}\n", release.suites.join(" "), release.packages);
        filled(&folder, &recipe, |new| {
            let packages = download(release, new).with_context(|| {
                format!("the servers of Debian's {} cannot be had", release.folder)
            })?;
            for package in packages {
                let unpack = Command::program("dpkg-deb", "--extract")
                    .with_argument(package.display().to_string());
                unpack.with_argument(new.display().to_string()).output()?;
            }
            start_with_own_loader(new, &folder)
        })?;
    }
    Ok(())
}

/// Downloads the package files, in the versions that the archive has now. apt checks their
/// signatures.
fn download(release: &Release, new: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let archive = archive().map_err(anyhow::Error::msg)?;
    let apt = new.join("apt");
    let folders = ["lists/partial", "archives/partial", "packages"];
    folders.iter().try_for_each(|folder| fs::create_dir_all(apt.join(folder)))?;
    let signed =
        if Path::new(KEYS).is_file() { format!("[signed-by={KEYS}] ") } else { String::new() };
    let sources =
        release.suites.iter().map(|suite| format!("deb {signed}{archive} {suite} main\n"));
    fs::write(apt.join("sources.list"), sources.collect::<String>())?;
    // None of the machine's own lists, nothing that is installed, and a folder that is not shared.
    let settings = [
        ("Dir::Etc::sourcelist", apt.join("sources.list")),
        ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
        ("Dir::Etc::preferencesparts", PathBuf::from("/dev/null")),
        ("Dir::State::status", PathBuf::from("/dev/null")),
        ("Dir::State::lists", apt.join("lists")),
        ("Dir::Cache", apt.clone()),
        ("Acquire::Languages", PathBuf::from("none")),
        ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", PathBuf::from("false")),
        ("APT::Sandbox::User", PathBuf::from("root")),
    ];
    let settings = settings.map(|(name, value)| format!("{name} \"{}\";\n", value.display()));
    fs::write(apt.join("apt.conf"), settings.concat())?;
    let get = |line: &str| {
        let line = format!("-q -c ../apt.conf {line}");
        Command::program("apt-get", &line).in_folder(&apt.join("packages"))
    };
    get("update --error-on=any").run()?;
    get(&format!("download {}", release.packages)).run()?;
    fs::read_dir(apt.join("packages"))?.map(|entry| Ok(entry?.path())).collect()
}

/// Replaces each program by a script that starts it with the loader and the libraries of `folder`,
/// where `new` will be. The machine's own C library may be older.
fn start_with_own_loader(new: &Path, folder: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(new.join("apt"))?;
    let libraries = libraries(new)?;
    let loader = libraries
        .iter()
        .find_map(|libraries| loader(&new.join(libraries)).map(|name| libraries.join(name)));
    let loader = folder.join(loader.context("the packages have no loader")?);
    let path = env::join_paths(libraries.iter().map(|libraries| folder.join(libraries)))?;
    for programs in ["bin", "sbin", "usr/bin", "usr/sbin"] {
        let Ok(entries) = new.join(programs).read_dir() else { continue };
        for entry in entries {
            let program = entry?.path();
            if program.is_symlink() || !is_elf(&program) {
                continue;
            }
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let behind = format!("{name}.{BEHIND}");
            fs::rename(&program, program.with_file_name(&behind))?;
            // Some programs have several names, and behave according to the name.
            let script = format!(
                "#!/bin/sh\nexec '{}' --library-path '{}' --argv0 \"$0\" '{}' \"$@\"\n",
                loader.display(),
                path.display(),
                folder.join(programs).join(&behind).display()
            );
            fs::write(&program, script)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// Returns the folders of libraries in `new`, such as `usr/lib/x86_64-linux-gnu`.
fn libraries(new: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["lib", "usr/lib"] {
        let Ok(entries) = new.join(folder).read_dir() else { continue };
        for entry in entries {
            let name = entry?.file_name();
            if name.to_string_lossy().ends_with("-linux-gnu") {
                found.push(Path::new(folder).join(&name));
                // The folder for private libraries of systemd.
                found.push(Path::new(folder).join(&name).join("systemd"));
            }
        }
    }
    if found.is_empty() {
        bail!("the packages have no libraries");
    }
    Ok(found)
}

fn loader(libraries: &Path) -> Option<String> {
    let names =
        libraries.read_dir().ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find(|name| name.starts_with("ld-linux"))
}

fn is_elf(program: &Path) -> bool {
    let mut begin = [0; 4];
    let read = fs::File::open(program).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::start_with_own_loader;

    #[test]
    fn a_program_is_started_by_the_loader_that_was_unpacked_with_it() {
        let place = tempfile::tempdir().unwrap();
        for folder in ["apt", "usr/bin", "usr/lib/x86_64-linux-gnu"] {
            fs::create_dir_all(place.path().join(folder)).unwrap();
        }
        let file = |name: &str| place.path().join("usr/bin").join(name);
        fs::write(place.path().join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), "").unwrap();
        fs::write(file("server"), b"\x7fELF and so on").unwrap();
        fs::write(file("script"), "#!/bin/sh\n").unwrap();
        start_with_own_loader(place.path(), Path::new("/servers/trixie")).unwrap();
        let script = fs::read_to_string(file("server")).unwrap();
        assert!(
            script.contains("exec '/servers/trixie/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2'"),
            "{script}"
        );
        assert!(script.contains("'/servers/trixie/usr/bin/server.elf' \"$@\""), "{script}");
        assert_eq!(fs::read(file("server.elf")).unwrap(), b"\x7fELF and so on");
        assert_eq!(fs::read_to_string(file("script")).unwrap(), "#!/bin/sh\n");
    }
}
