//! Statements that can be removed.

use anyhow::Context as _;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Block, Expr, ImplItemFn, ItemFn, ItemImpl, ItemMod, Local, Pat, Signature, Stmt,
};

use crate::change::{CHOSEN, Change};

/// Returns the statements of a source file, in order.
pub(crate) fn statements(source: &str) -> anyhow::Result<Vec<Change>> {
    let file = syn::parse_file(source).context("the source cannot be parsed")?;
    let mut search = Search { found: Vec::new() };
    search.visit_file(&file);
    search.found.sort_by_key(Change::order);
    Ok(search.found)
}

struct Search {
    found: Vec<Change>,
}

impl Search {
    fn add(&mut self, statement: &Stmt) {
        let span = statement.span();
        let text = span.source_text().unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.found.push(Change::around(span, format!("if !{CHOSEN} {{ "), " }", text));
    }
}

impl<'ast> Visit<'ast> for Search {
    fn visit_block(&mut self, block: &'ast Block) {
        let last = block.stmts.len().saturating_sub(1);
        for (index, statement) in block.stmts.iter().enumerate() {
            if can_go(statement, index == last) {
                self.add(statement);
            }
        }
        visit::visit_block(self, block);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        // The `Debug` output is not promised to anyone.
        let is_debug = item.trait_.as_ref().is_some_and(|(path, ..)| is_named(path, "Debug"));
        if !is_debug && !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if can_look(&function.sig) && !is_for_tests(&function.attrs) {
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if can_look(&function.sig) && !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }
}

/// Returns true if the code of the function can read the environment.
pub(crate) fn can_look(signature: &Signature) -> bool {
    signature.constness.is_none()
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_test = attribute.path().is_ident("test");
        is_test
            || (attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test")))
    })
}

/// Returns true if the rest compiles without it, as far as that can be seen: the compiler finds the
/// others.
fn can_go(statement: &Stmt, is_last: bool) -> bool {
    match statement {
        Stmt::Expr(Expr::If(branch), _) => !is_last && branch.else_branch.is_none(),
        Stmt::Expr(expression, Some(_)) => has_effect(expression),
        Stmt::Local(Local { pat: Pat::Wild(_), init: Some(init), .. }) => has_effect(&init.expr),
        _ => false,
    }
}

/// Returns true for a call, an assignment or an expression made of them.
fn has_effect(expression: &Expr) -> bool {
    match expression {
        Expr::Call(_) | Expr::MethodCall(_) | Expr::Assign(_) => true,
        Expr::Binary(binary) => is_assignment(&binary.op),
        Expr::Await(inner) => has_effect(&inner.base),
        Expr::Try(inner) => has_effect(&inner.expr),
        _ => false,
    }
}

fn is_assignment(operator: &syn::BinOp) -> bool {
    use syn::BinOp;
    matches!(
        operator,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}

fn is_named(path: &syn::Path, name: &str) -> bool {
    path.segments.last().is_some_and(|segment| segment.ident == name)
}

#[cfg(test)]
mod tests {
    use super::statements;
    use crate::change::with_changes;

    const SOURCE: &str = "
fn pay(ledger: &mut Ledger) -> Result<(), Error> {
    let amount = ledger.amount();
    if amount == 0 {
        return Ok(());
    }
    ledger.book(amount)?;
    if amount > 3 { ledger.warn(); } else { log(\"ä\"); ledger.total += amount; }
    let _ = ledger
        .flush();
    tracing::debug!(amount);
    Ok(())
}

const fn size() -> usize { let mut size = 1; size += 1; size }

impl fmt::Debug for Ledger { fn fmt(&self) { self.show(); } }

#[cfg(test)]
mod tests { fn test() { check(); } }
";

    fn found() -> Vec<String> {
        statements(SOURCE).unwrap().into_iter().map(|change| change.text).collect()
    }

    #[test]
    fn calls_assignments_and_guards_can_go_and_nothing_else() {
        let guard = "if amount == 0 { return Ok(()); }";
        let inside = ["ledger.warn();", "log(\"ä\");", "ledger.total += amount;"];
        let all =
            [&[guard, "ledger.book(amount)?;"][..], &inside[..], &["let _ = ledger .flush();"][..]]
                .concat();
        assert_eq!(found(), all);
    }

    #[test]
    fn each_is_inside_its_own_condition_and_on_its_own_line() {
        let all = statements(SOURCE).unwrap();
        let source = with_changes(SOURCE, all.iter().enumerate());
        syn::parse_file(&source).unwrap();
        assert_eq!(source.lines().count(), SOURCE.lines().count());
        for (number, statement) in all.iter().enumerate() {
            let lines: Vec<_> = source.lines().skip(statement.lines().start() - 1).collect();
            assert!(lines[0].contains(&format!("it == \"{number}\"")), "{number}: {}", lines[0]);
        }
        assert!(source.contains("{ log(\"ä\"); }"), "{source}");
        assert!(source.contains("        .flush(); }"), "{source}");
    }
}
