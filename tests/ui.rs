//! What the compiler says about a mistake. The texts belong to the toolchain that the repository pins.

#[test]
fn mistakes_are_reported_once_where_they_are() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}
