//! The operations that an engine has met: whose name is whose, and which are switched off.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::Error;

/// Where one `#[idempotent]` function stands. One `static` per function.
#[derive(Debug)]
pub struct Site {
    name: &'static str,
    file: &'static str,
    line: u32,
}

impl Site {
    /// The function called `name` at `file`:`line`.
    pub const fn new(name: &'static str, file: &'static str, line: u32) -> Self {
        Self { name, file, line }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    fn is_same_place(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.file == other.file && self.line == other.line)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Operations {
    sites: RwLock<HashMap<&'static str, (&'static Site, Arc<str>)>>,
    disabled: RwLock<HashSet<Arc<str>>>,
}

impl Operations {
    /// The name of the operation at `site`. Two functions with one name would share their records, and are refused.
    pub(crate) fn name_of(&self, site: &'static Site) -> Result<Arc<str>, Error> {
        let known = self.sites.read().unwrap_or_else(PoisonError::into_inner).get(site.name).cloned();
        let (first, name) = known.unwrap_or_else(|| {
            let mut sites = self.sites.write().unwrap_or_else(PoisonError::into_inner);
            sites.entry(site.name).or_insert_with(|| (site, site.name.into())).clone()
        });
        if first.is_same_place(site) {
            return Ok(name);
        }
        Err(Error::config(format!(
            "two functions have this name, at {}:{} and at {}:{}; give one of them another: `name = \"…\"`",
            first.file, first.line, site.file, site.line
        ))
        .of_operation(&name))
    }

    pub(crate) fn disable(&self, operation: &str) {
        self.disabled.write().unwrap_or_else(PoisonError::into_inner).insert(operation.into());
    }

    pub(crate) fn enable(&self, operation: &str) {
        self.disabled.write().unwrap_or_else(PoisonError::into_inner).remove(operation);
    }

    pub(crate) fn is_disabled(&self, operation: &str) -> bool {
        self.disabled.read().unwrap_or_else(PoisonError::into_inner).contains(operation)
    }
}
