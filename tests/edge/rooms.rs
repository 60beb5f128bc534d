//! The arrows between the rooms of the runtime crate point one way: contract, engine, edge, and the
//! edges for HTTP and messages; stores know the contract alone.

use std::path::Path;

use crate::boundary::{paths, sources};

/// A room, its files, and the modules that they must not name.
struct Room {
    name: &'static str,
    files: &'static [&'static str],
    above: &'static [&'static str],
}

const STORES: [&str; 6] = ["memory", "redis", "sql", "postgres", "mysql", "sqlite"];

const ROOMS: &[Room] = &[
    Room {
        name: "contract",
        files: &[
            "store",
            "key",
            "clock.rs",
            "fingerprint.rs",
            "canonical",
            "encoding",
            "boot_time.rs",
        ],
        above: &[
            "engine",
            "context",
            "outcome",
            "policy",
            "steps",
            "events",
            "near_cache",
            "error",
            "Error",
            "ErrorKind",
            "edge",
            "http",
            "inbox",
        ],
    },
    Room {
        name: "engine",
        files: &[
            "engine",
            "context.rs",
            "outcome.rs",
            "policy.rs",
            "steps",
            "events",
            "near_cache.rs",
            "error.rs",
        ],
        above: &["edge", "http", "inbox"],
    },
    Room { name: "edge", files: &["edge"], above: &["http", "inbox"] },
    Room {
        name: "stores",
        files: &["memory", "redis", "postgres", "mysql", "sqlite"],
        above: &["engine", "context", "steps", "events", "near_cache", "edge", "http", "inbox"],
    },
];

fn is_in(file: &Path, room: &Room) -> bool {
    room.files.iter().any(|part| file.starts_with(part))
}

#[test]
fn no_arrow_points_from_a_room_to_one_above_it() {
    let (sources, mut wrong) = (sources(), Vec::new());
    for room in ROOMS {
        let files: Vec<_> = sources.iter().filter(|(file, _)| is_in(file, room)).collect();
        assert!(!files.is_empty(), "the room {} has no files", room.name);
        for (file, code) in files {
            let named = paths(code).into_iter().filter(|name| room.above.contains(name));
            wrong.extend(
                named.map(|name| format!("{}: {} names {name}", room.name, file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `store/mod.rs` alone names them, where it gives each its public name.
#[test]
fn neither_contract_nor_engine_names_a_store() {
    let (sources, mut wrong) = (sources(), Vec::new());
    for room in &ROOMS[..3] {
        for (file, code) in sources.iter().filter(|(file, _)| is_in(file, room)) {
            if file == Path::new("store/mod.rs") {
                continue;
            }
            let named = paths(code).into_iter().filter(|name| STORES.contains(name));
            wrong.extend(named.map(|name| format!("{} names {name}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
