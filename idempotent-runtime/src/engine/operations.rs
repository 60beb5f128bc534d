//! The operations that an engine has seen: the function behind each name, and those that are
//! disabled.

use std::any::TypeId;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::instance::Instance;
use crate::error::Error;
use crate::lock::RwLock;

/// The location of one `#[idempotent]` function. One `static` per function.
#[derive(Debug)]
pub struct Site {
    name: &'static str,
    file: &'static str,
    line: u32,
    column: u32,
    /// A type that belongs to this function alone.
    function: Option<TypeId>,
}

impl Site {
    /// Creates the site of the function named `name` at `file`:`line`.
    pub const fn new(name: &'static str, file: &'static str, line: u32) -> Self {
        Self { name, file, line, column: 0, function: None }
    }

    /// Adds what distinguishes the function from every other one: a type that is declared for this
    /// function alone.
    ///
    /// A position in the source is not enough. Two functions written by a macro share one, and so
    /// do those of a crate that is compiled twice. Nor is the address of a `static`: the linker may
    /// merge equal ones.
    #[must_use]
    pub const fn of(self, column: u32, function: TypeId) -> Self {
        let Self { name, file, line, .. } = self;
        Self { name, file, line, column, function: Some(function) }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    fn is_same_function(&self, other: &Self) -> bool {
        match (self.function, other.function) {
            (Some(own), Some(others)) => own == others,
            _ => std::ptr::eq(self, other) || (self.file == other.file && self.line == other.line),
        }
    }

    fn place(&self) -> String {
        format!("{}:{}:{}", self.file, self.line, self.column)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Operations {
    known: RwLock<BTreeMap<&'static str, Known>>,
    disabled: RwLock<HashSet<Arc<str>>>,
}

/// The first function that was called under a name, and how it was called.
#[derive(Clone, Debug)]
struct Known {
    site: &'static Site,
    /// `None` if the user has given the name: then all instances of the function share it.
    instance: Option<Instance>,
    name: Arc<str>,
}

impl Operations {
    /// Returns the name of the operation at `site`, unless it would share its records with another
    /// function, or with another instance of the function if the user has not given the name.
    ///
    /// The first function keeps the name and every other one is rejected, however many threads call
    /// at once: the first is entered under the lock and never replaced. An instance with parameters
    /// is rejected even if it is the first, because the others may run in another process.
    pub(crate) fn name_of(
        &self,
        site: &'static Site,
        instance: Option<Instance>,
    ) -> Result<Arc<str>, Error> {
        let known = self.known.read().get(site.name).cloned();
        let first = if let Some(known) = known {
            known
        } else {
            if let Some(instance) = instance.filter(Instance::has_parameters) {
                return Err(one_of_many(site, &instance));
            }
            let mut known = self.known.write();
            known
                .entry(site.name)
                .or_insert_with(|| Known { site, instance, name: site.name.into() })
                .clone()
        };
        if !first.site.is_same_function(site) {
            return Err(two_functions(first.site, site));
        }
        match (first.instance, instance) {
            (Some(known), Some(instance)) if known != instance => {
                Err(if instance.has_parameters() {
                    one_of_many(site, &instance)
                } else {
                    two_instances(site, &known, &instance)
                })
            }
            _ => Ok(first.name),
        }
    }

    pub(crate) fn disable(&self, operation: &str) {
        self.disabled.write().insert(operation.into());
    }

    pub(crate) fn enable(&self, operation: &str) {
        self.disabled.write().remove(operation);
    }

    pub(crate) fn is_disabled(&self, operation: &str) -> bool {
        self.disabled.read().contains(operation)
    }
}

fn refused(site: &Site, detail: String) -> Error {
    Error::config(detail).of_operation(&site.name.into())
}

fn two_functions(first: &Site, second: &Site) -> Error {
    let (one, other) = (first.place(), second.place());
    let places = if one == other {
        format!("both written by a macro at {one}")
    } else {
        format!("at {one} and at {other}")
    };
    refused(
        second,
        format!("two functions have this name, {places}; give one of them another: `name = \"…\"`"),
    )
}

fn one_of_many(site: &Site, instance: &Instance) -> Error {
    let path = instance.function();
    refused(
        site,
        format!(
            "`{path}` is one of many functions, which would share this operation and answer for \
             each other: name it, `name = \"payments.{}\"`, and put what distinguishes their calls \
             into `key`",
            own_name(site)
        ),
    )
}

fn two_instances(site: &Site, first: &Instance, second: &Instance) -> Error {
    let (one, other) = (first.function(), second.function());
    let both = if one == other {
        format!("two types at `{one}`")
    } else {
        format!("`{one}` and `{other}`")
    };
    refused(
        site,
        format!(
            "{both} would share this operation and answer for each other: name it, `name = \
             \"payments.{}\"`, and put what distinguishes their calls into `key`",
            own_name(site)
        ),
    )
}

/// The last part of the default name, which is the function's own.
fn own_name(site: &Site) -> &'static str {
    site.name.rsplit("::").next().unwrap_or(site.name)
}
