//! The changes that `cargo-mutants` proposes: of conditions, operators, match arms, fields, and the
//! results of functions.
//!
//! Only its list is used. It builds once for each change, which takes hours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use proc_macro2::LineColumn;
use quote::ToTokens;
use serde::Deserialize;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{
    Arm, BinOp, Expr, ExprBinary, ExprStruct, ExprUnary, ImplItemFn, ItemFn, Pat, PatGuard, Token,
};

use crate::change::{CHOSEN, Change};
use crate::statements::can_look;
use crate::tree::Tree;

/// The crate whose changes are listed.
const PACKAGE: &str = "idempotent-runtime";

/// A change as it is listed.
#[derive(Clone, Debug, Deserialize)]
struct Proposed {
    name: String,
    file: PathBuf,
    span: Range,
    replacement: String,
    genre: Genre,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Range {
    start: Position,
}

/// Both numbers begin with 1.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Position {
    line: usize,
    column: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Genre {
    FnValue,
    BinaryOperator,
    UnaryOperator,
    MatchArm,
    MatchArmGuard,
    StructField,
}

/// The list.
#[derive(Debug)]
pub(crate) struct List(BTreeMap<PathBuf, Vec<Proposed>>);

impl List {
    /// Asks `cargo-mutants` for its list.
    pub(crate) fn of(tree: &Tree) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&tree.root);
        let output = command
            .args(["mutants", "--list", "--json", "--package", PACKAGE])
            .output()
            .context("cargo does not start")?;
        ensure!(
            output.status.success(),
            "no list; is it missing? Install it with `cargo install --locked cargo-mutants`: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let all: Vec<Proposed> =
            serde_json::from_slice(&output.stdout).context("the list cannot be read")?;
        let mut files = BTreeMap::<_, Vec<_>>::new();
        for mut proposed in all {
            // The place is said by whoever shows it.
            if let Some(place) = proposed.name.find(": ") {
                proposed.name.drain(..place + 2);
            }
            files.entry(proposed.file.clone()).or_default().push(proposed);
        }
        Ok(Self(files))
    }

    /// Returns the changes of a file, in order.
    pub(crate) fn changes(&self, file: &Path, source: &str) -> anyhow::Result<Vec<Change>> {
        let proposed = self.0.get(file).map_or(&[][..], Vec::as_slice);
        changes(proposed, source)
    }
}

fn changes(proposed: &[Proposed], source: &str) -> anyhow::Result<Vec<Change>> {
    let file = syn::parse_file(source).context("the source cannot be parsed")?;
    let mut placement = Placement { proposed, found: Vec::new() };
    placement.visit_file(&file);
    placement.found.sort_by_key(Change::order);
    Ok(placement.found)
}

/// Puts each change on a condition. Changes of what is computed at compile time are left out: it
/// cannot read the environment.
struct Placement<'a> {
    proposed: &'a [Proposed],
    found: Vec<Change>,
}

impl Placement<'_> {
    /// Returns what is proposed for a place.
    fn at(&self, genre: Genre, place: LineColumn) -> Vec<Proposed> {
        let is_here = |proposed: &&Proposed| {
            let start = proposed.span.start;
            proposed.genre == genre && (start.line, start.column) == (place.line, place.column + 1)
        };
        self.proposed.iter().filter(is_here).cloned().collect()
    }

    /// Adds a change of an expression into another.
    fn replace(&mut self, expression: &impl syn::spanned::Spanned, other: &Expr, name: String) {
        let other = other.to_token_stream().to_string().replace('\n', " ");
        let opening = format!("(if {CHOSEN} {{ {other} }} else {{ ");
        self.found.push(Change::around(expression.span(), opening, " })", name));
    }

    fn function(&mut self, body: &syn::Block) {
        let Some(first) = body.stmts.first() else { return };
        let start = first.span().start();
        for Proposed { replacement, name, .. } in self.at(Genre::FnValue, start) {
            let opening = format!("if {CHOSEN} {{ return {replacement}; }} ");
            self.found.push(Change::before(start, opening, name));
        }
    }
}

impl<'ast> Visit<'ast> for Placement<'_> {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if can_look(&function.sig) {
            self.function(&function.block);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if can_look(&function.sig) {
            self.function(&function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.function(body);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}

    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}

    fn visit_expr_binary(&mut self, expression: &'ast ExprBinary) {
        for proposed in self.at(Genre::BinaryOperator, expression.op.span().start()) {
            if let Ok(op) = syn::parse_str::<BinOp>(&proposed.replacement) {
                let other = ExprBinary { op, ..expression.clone() };
                self.replace(expression, &Expr::Binary(other), proposed.name);
            }
        }
        visit::visit_expr_binary(self, expression);
    }

    fn visit_expr_unary(&mut self, expression: &'ast ExprUnary) {
        for proposed in self.at(Genre::UnaryOperator, expression.op.span().start()) {
            self.replace(expression, &expression.expr, proposed.name);
        }
        visit::visit_expr_unary(self, expression);
    }

    fn visit_expr_struct(&mut self, expression: &'ast ExprStruct) {
        for field in &expression.fields {
            for proposed in self.at(Genre::StructField, field.span().start()) {
                let others = expression.fields.iter().filter(|other| other.member != field.member);
                let mut fields: Punctuated<_, Token![,]> = others.cloned().collect();
                // A base follows.
                if !fields.is_empty() {
                    fields.push_punct(<Token![,]>::default());
                }
                let other = ExprStruct { fields, ..expression.clone() };
                self.replace(expression, &Expr::Struct(other), proposed.name);
            }
        }
        visit::visit_expr_struct(self, expression);
    }

    fn visit_arm(&mut self, arm: &'ast Arm) {
        for proposed in self.at(Genre::MatchArm, arm.span().start()) {
            let opening = format!(" if !{CHOSEN} ");
            self.found.push(Change::before(arm.pat.span().end(), opening, proposed.name));
        }
        if let Pat::Guard(PatGuard { guard, .. }) = &arm.pat {
            for proposed in self.at(Genre::MatchArmGuard, guard.span().start()) {
                let opening = match proposed.replacement.as_str() {
                    "true" => format!("({CHOSEN} || ("),
                    _ => format!("(!{CHOSEN} && ("),
                };
                self.found.push(Change::around(guard.span(), opening, "))", proposed.name));
            }
        }
        visit::visit_arm(self, arm);
    }
}

#[cfg(test)]
mod tests {
    use super::{Genre, Position, Proposed, Range, changes};
    use crate::change::with_changes;

    const SOURCE: &str = "
fn pay(amount: u64, limits: &Limits) -> Option<u64> {
    let is_small = amount < limits.most && !limits.closed;
    match amount {
        0 => return None,
        1 if is_small
            => log(amount),
        _ => {}
    }
    Some(Order { amount, fee: 3, ..Order::new() }.total())
}

const fn fee() -> u64 { 2 + 1 }
";

    fn proposed(genre: Genre, text: &str, replacement: &str) -> Proposed {
        let before = &SOURCE[..SOURCE.find(text).unwrap()];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').unwrap();
        Proposed {
            name: text.to_owned(),
            file: "pay.rs".into(),
            span: Range { start: Position { line, column } },
            replacement: replacement.to_owned(),
            genre,
        }
    }

    #[test]
    fn each_kind_of_change_is_made_on_its_condition_and_on_its_own_lines() {
        let all = [
            proposed(Genre::FnValue, "let is_small", "None"),
            proposed(Genre::BinaryOperator, "< limits", ">"),
            proposed(Genre::BinaryOperator, "&& !", "||"),
            proposed(Genre::UnaryOperator, "!limits", ""),
            proposed(Genre::MatchArm, "0 => return", ""),
            proposed(Genre::MatchArmGuard, "is_small\n", "true"),
            proposed(Genre::MatchArmGuard, "is_small\n", "false"),
            proposed(Genre::StructField, "fee: 3", ""),
            proposed(Genre::BinaryOperator, "+ 1", "-"),
        ];
        let found = changes(&all, SOURCE).unwrap();
        assert_eq!(found.len(), all.len() - 1, "what is constant cannot be changed: {found:#?}");
        let source = with_changes(SOURCE, found.iter().enumerate());

        syn::parse_file(&source).unwrap();
        assert_eq!(source.lines().count(), SOURCE.lines().count());
        let line = |number: usize| source.lines().nth(number - 1).unwrap();
        for (number, text) in [
            (3, "{ return None; } let is_small"),
            (3, "amount < limits . most || ! limits . closed }"),
            (3, "amount > limits . most }"),
            (3, "{ limits . closed } else { !limits.closed })"),
            (5, "0 if !{ "),
            (6, "|| ("),
            (6, "&& ("),
            (10, "{ Order { amount , .. Order :: new () } } else { Order { amount, fee: 3,"),
        ] {
            assert!(line(number).contains(text), "{text}: {source}");
        }
    }
}
