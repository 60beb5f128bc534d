//! Parses the options of the attribute, each with its span. All mistakes are reported at once.

use proc_macro2::{Span, TokenStream};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::visit::{self, Visit};
use syn::{Expr, ExprLit, Ident, Lit, LitInt, LitStr, Path, Token};

use crate::duration::{self, Time};
use crate::errors::Errors;
use crate::key::{self, Key};
use crate::nearest::nearest;
use crate::transaction;
use crate::verify::{self, Verify};

/// The options as written, each checked on its own. Rules across options are in `check`.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) key: Option<Key>,
    pub(crate) ttl: Option<Time>,
    pub(crate) name: Option<Expr>,
    pub(crate) scope: Option<Key>,
    pub(crate) fingerprint: Option<Expr>,
    pub(crate) former_fingerprint: Option<FormerFingerprint>,
    pub(crate) lease: Option<Time>,
    pub(crate) on_conflict: Option<OnConflict>,
    pub(crate) on_crash: Option<OnCrash>,
    pub(crate) on_error: Option<OnError>,
    pub(crate) version: Option<LitInt>,
    pub(crate) upgrade: Option<Expr>,
    pub(crate) upgrade_error: Option<Expr>,
    pub(crate) engine: Option<Expr>,
    pub(crate) facade: Option<Path>,
    pub(crate) detach: Option<Span>,
    pub(crate) tx: Option<Expr>,
    pub(crate) after_expiry: Option<Time>,
    /// Every option that was named, even with a wrong value: it does not count as missing.
    named: Vec<Ident>,
    /// Every option that was probably meant by a misspelt name. It does not count as missing, and no
    /// message says that it was written.
    meant: Vec<&'static str>,
    /// The values of `key`, `scope` and `fingerprint` as written.
    pub(crate) telling_apart: Vec<(&'static str, Expr)>,
    /// All tokens as written.
    pub(crate) tokens: TokenStream,
    /// True if one of the options is unreadable: it may be any of them.
    pub(crate) has_unreadable: bool,
}

impl Args {
    /// Returns true if the option was neither named nor meant by a misspelt name.
    pub(crate) fn is_missing(&self, option: &str) -> bool {
        self.named(option).is_none() && !self.meant.contains(&option)
    }

    /// Returns the place at which the option was named, if it was.
    pub(crate) fn named(&self, option: &str) -> Option<Span> {
        self.named.iter().find(|ident| *ident == option).map(Ident::span)
    }
}

pub(crate) enum FormerFingerprint {
    Absent,
    Of(Expr),
}

pub(crate) enum OnConflict {
    /// As long as the engine is configured to wait.
    Wait,
    WaitFor(Time),
    Reject,
}

pub(crate) enum OnCrash {
    Hold,
    Retry,
    Resume,
    Verify(Verify),
}

pub(crate) enum OnError {
    Release,
    Hold,
    Store,
    /// A path or a closure that returns the policy for each error.
    Classify(Box<Expr>),
}

/// The options, each with a correct example.
const OPTIONS: [(&str, &str); 18] = [
    ("key", "key = order.id"),
    ("ttl", "ttl = \"24h\""),
    ("name", "name = \"payments.charge\""),
    ("scope", "scope = order.tenant"),
    ("fingerprint", "fingerprint = order"),
    ("former_fingerprint", "former_fingerprint = order.amount"),
    ("lease", "lease = \"30s\""),
    ("on_conflict", "on_conflict = wait(\"5s\")"),
    ("on_crash", "on_crash = retry"),
    ("after_expiry", "after_expiry = refuse(\"30d\")"),
    ("on_error", "on_error = store"),
    ("detach", "detach"),
    ("version", "version = 1"),
    ("upgrade", "upgrade = read_old_receipt"),
    ("upgrade_error", "upgrade_error = read_old_error"),
    ("engine", "engine = &self.engine"),
    ("tx", "tx = tx"),
    ("crate", "crate = crate::reexported::idempotency"),
];

/// Parses the tokens between the parentheses of the attribute.
pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Args {
    let mut args = Args { tokens: tokens.clone(), ..Args::default() };
    let parser = |input: ParseStream| {
        while !input.is_empty() {
            if let Err(error) = option(&mut args, input, errors) {
                errors.push(error);
                skip_option(input)?;
            } else if let Err(error) = separator(input) {
                errors.push(error);
                let is_option_next = input.peek(Ident::peek_any) && input.peek2(Token![=]);
                if !is_option_next {
                    skip_option(input)?;
                }
            }
        }
        Ok(())
    };
    if let Err(error) = parser.parse2(tokens) {
        errors.push(error);
    }
    args
}

/// Skips to the next comma, so that a mistake in one option does not hide mistakes in the others.
fn skip_option(input: ParseStream) -> syn::Result<()> {
    while !input.is_empty() {
        if input.parse::<Option<Token![,]>>()?.is_some() {
            break;
        }
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}

fn separator(input: ParseStream) -> syn::Result<()> {
    if input.is_empty() || input.parse::<Option<Token![,]>>()?.is_some() {
        return Ok(());
    }
    Err(input
        .error("options are separated by commas: `#[idempotent(key = order.id, ttl = \"24h\")]`"))
}

fn option(args: &mut Args, input: ParseStream, errors: &mut Errors) -> syn::Result<()> {
    let name = input.call(Ident::parse_any).map_err(|error| {
        args.has_unreadable = true;
        syn::Error::new(
            error.span(),
            "expected an option: `#[idempotent(key = order.id, ttl = \"24h\")]`",
        )
    })?;
    let text = name.to_string();
    let Some((_, example)) = OPTIONS.iter().find(|(option, _)| *option == text) else {
        let meant = nearest(&text, &OPTIONS.map(|(option, _)| option));
        args.meant.extend(meant);
        return Err(unknown(&name, meant));
    };
    if args.named(&text).is_some() {
        return Err(syn::Error::new(
            name.span(),
            format!("`{text}` is given twice: keep one `{example}`"),
        ));
    }
    args.named.push(name.clone());

    if text == "detach" {
        args.detach = Some(name.span());
        if input.is_empty() || input.peek(Token![,]) {
            return Ok(());
        }
        return Err(syn::Error::new(
            name.span(),
            "`detach` takes no value: write `detach`, or leave it out",
        ));
    }
    if input.parse::<Option<Token![=]>>()?.is_none() {
        return Err(syn::Error::new(
            name.span(),
            format!("`{text}` takes a value: write `{example}`"),
        ));
    }
    if text == "crate" {
        args.facade = Some(facade(input, &name)?);
        return Ok(());
    }
    let value: Expr = input.parse().map_err(|error| {
        syn::Error::new(
            error.span(),
            format!("{error}: `{text}` takes an expression, as in `{example}`"),
        )
    })?;
    if text == "tx" {
        args.tx = transaction::parse(value, errors);
        return Ok(());
    }
    refuse_leaving(&text, &value, errors);
    if let Some(option) = ["key", "scope", "fingerprint"].into_iter().find(|option| *option == text)
    {
        args.telling_apart.push((option, value.clone()));
    }
    match text.as_str() {
        "key" => args.key = Some(key::parse("key", &value, errors)),
        "scope" => args.scope = Some(key::parse("scope", &value, errors)),
        "ttl" => args.ttl = duration::parse("ttl", "ttl = \"24h\"", value, errors),
        "lease" => args.lease = duration::parse("lease", "lease = \"30s\"", value, errors),
        "name" => args.name = operation_name(value, errors),
        "fingerprint" => args.fingerprint = fingerprint("fingerprint", value, errors),
        "former_fingerprint" => args.former_fingerprint = former_fingerprint(value, errors),
        "on_conflict" => args.on_conflict = on_conflict(&value, errors),
        "on_crash" => args.on_crash = on_crash(&value, errors),
        "after_expiry" => args.after_expiry = after_expiry(&value, errors),
        "on_error" => args.on_error = on_error(value, errors),
        "version" => args.version = version(&value, errors),
        "upgrade" => args.upgrade = Some(value),
        "upgrade_error" => args.upgrade_error = Some(value),
        _ => args.engine = Some(value),
    }
    Ok(())
}

/// Rejects values that would leave their closure: `?`, `return` and `.await` are not possible in
/// it.
fn refuse_leaving(option: &str, value: &Expr, errors: &mut Errors) {
    struct Finder<'a>(Option<&'a Expr>);
    impl<'a> Visit<'a> for Finder<'a> {
        fn visit_expr(&mut self, value: &'a Expr) {
            match value {
                Expr::Try(_) | Expr::Await(_) | Expr::Return(_) => self.0 = self.0.or(Some(value)),
                Expr::Closure(_) | Expr::Async(_) => {}
                _ => visit::visit_expr(self, value),
            }
        }
    }
    let mut finder = Finder(None);
    finder.visit_expr(value);
    if let Some(leaving) = finder.0 {
        errors.over(
            leaving,
            format!(
                "`{option}` is evaluated before the call can fail or wait: pass the result of this \
                 as an argument, as in `{option} = id`"
            ),
        );
    }
}

fn unknown(name: &Ident, meant: Option<&str>) -> syn::Error {
    let options = OPTIONS.map(|(option, _)| option).join(", ");
    let example =
        OPTIONS.iter().find(|(option, _)| meant == Some(option)).map(|(_, example)| example);
    let message = match example {
        Some(example) => {
            format!("unknown option `{name}`; the options are {options}; did you mean `{example}`?")
        }
        None => format!("unknown option `{name}`; write one of {options}"),
    };
    syn::Error::new(name.span(), message)
}

fn facade(input: ParseStream, name: &Ident) -> syn::Result<Path> {
    input.call(Path::parse_mod_style).map_err(|_| {
        syn::Error::new(
            name.span(),
            "`crate` takes the path of the facade: write `crate = crate::reexported::idempotency`",
        )
    })
}

fn operation_name(value: Expr, errors: &mut Errors) -> Option<Expr> {
    if let Some(literal) = string(&value) {
        let text = literal.value();
        if text.trim().is_empty() {
            errors.at(
                literal.span(),
                "an operation needs a name: write `name = \"payments.charge\"`",
            );
            return None;
        }
        if text.contains(['{', '}']) {
            errors.at(
                literal.span(),
                "`name` cannot contain placeholders, every call must use the same name: write \
                 `name = \"payments.charge\"`, and put the value into `key` or `scope`",
            );
            return None;
        }
    } else if let Expr::Lit(other) = plain(&value) {
        errors.over(
            other,
            "`name` must be a string literal or a constant: write `name = \"payments.charge\"`",
        );
        return None;
    }
    Some(value)
}

fn fingerprint(option: &str, value: Expr, errors: &mut Errors) -> Option<Expr> {
    if let Expr::Lit(literal) = plain(&value) {
        errors.over(
            literal,
            format!(
                "a constant fingerprint cannot distinguish two requests: write `{option} = order`, \
                 or the fields that a retry must repeat, `{option} = (order.amount, \
                 order.currency)`"
            ),
        );
        return None;
    }
    key::refuse_fresh_value(option, &value, errors);
    Some(value)
}

fn former_fingerprint(value: Expr, errors: &mut Errors) -> Option<FormerFingerprint> {
    if word(&value).as_deref() == Some("none") {
        return Some(FormerFingerprint::Absent);
    }
    fingerprint("former_fingerprint", value, errors).map(FormerFingerprint::Of)
}

fn on_conflict(value: &Expr, errors: &mut Errors) -> Option<OnConflict> {
    match word(value).as_deref() {
        Some("wait") => return Some(OnConflict::Wait),
        Some("reject") => return Some(OnConflict::Reject),
        _ => {}
    }
    if let Expr::Call(call) = plain(value)
        && word(&call.func).as_deref() == Some("wait")
        && let [time] = &call.args.iter().collect::<Vec<_>>()[..]
    {
        return duration::parse("wait", "on_conflict = wait(\"5s\")", (*time).clone(), errors)
            .map(OnConflict::WaitFor);
    }
    errors.over(
        value,
        "unknown `on_conflict` policy: expected `on_conflict = wait`, `on_conflict = wait(\"5s\")` \
         or `on_conflict = reject`",
    );
    None
}

fn after_expiry(value: &Expr, errors: &mut Errors) -> Option<Time> {
    if let Expr::Call(call) = plain(value)
        && word(&call.func).as_deref() == Some("refuse")
        && let [time] = &call.args.iter().collect::<Vec<_>>()[..]
    {
        return duration::parse(
            "refuse",
            "after_expiry = refuse(\"30d\")",
            (*time).clone(),
            errors,
        );
    }
    errors.over(
        value,
        "unknown `after_expiry` policy: expected `after_expiry = refuse(\"30d\")`; leave it out to \
         run the body again",
    );
    None
}

fn on_crash(value: &Expr, errors: &mut Errors) -> Option<OnCrash> {
    let called = match plain(value) {
        Expr::Call(call) => word(&call.func),
        _ => None,
    };
    if let Expr::Call(call) = plain(value)
        && called.as_deref() == Some("verify")
    {
        return verify::parse(call, errors).map(OnCrash::Verify);
    }
    match word(value).or(called).as_deref() {
        Some("hold") => return Some(OnCrash::Hold),
        Some("retry") => return Some(OnCrash::Retry),
        Some("resume") => return Some(OnCrash::Resume),
        Some("verify") => errors.over(
            value,
            "`verify` needs a function to call: write `on_crash = verify(ask_provider)`, or a \
             closure, which can use the arguments, `on_crash = verify(async |context| …)`",
        ),
        _ => errors.over(
            value,
            "unknown `on_crash` policy: expected `on_crash = hold`, `on_crash = retry`, `on_crash \
             = resume` or `on_crash = verify(ask_provider)`",
        ),
    }
    None
}

fn on_error(value: Expr, errors: &mut Errors) -> Option<OnError> {
    match word(&value).as_deref() {
        Some("release") => return Some(OnError::Release),
        Some("hold") => return Some(OnError::Hold),
        Some("store") => return Some(OnError::Store),
        _ => {}
    }
    if matches!(plain(&value), Expr::Path(_) | Expr::Closure(_)) && string(&value).is_none() {
        return Some(OnError::Classify(Box::new(value)));
    }
    errors.over(
        value,
        "unknown `on_error` policy: expected `on_error = release`, `on_error = store`, `on_error = \
         hold`, or a function over `&E`, `on_error = |error| …`",
    );
    None
}

fn version(value: &Expr, errors: &mut Errors) -> Option<LitInt> {
    if let Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) = plain(value)
        && number.base10_parse::<u32>().is_ok()
    {
        return Some(number.clone());
    }
    errors.over(value, "`version` must be a number from 0 to 4294967295: write `version = 1`");
    None
}

/// Strips the invisible delimiters of macro fragments, and parentheses.
pub(crate) fn plain(mut value: &Expr) -> &Expr {
    loop {
        value = match value {
            Expr::Group(group) => &group.expr,
            Expr::Paren(paren) => &paren.expr,
            other => return other,
        };
    }
}

/// Returns the string literal, if the value is one.
pub(crate) fn string(value: &Expr) -> Option<&LitStr> {
    match plain(value) {
        Expr::Lit(ExprLit { lit: Lit::Str(literal), .. }) => Some(literal),
        _ => None,
    }
}

/// Returns the word, if the value is a single word like `retry`.
pub(crate) fn word(value: &Expr) -> Option<String> {
    match plain(value) {
        Expr::Path(path) => path.path.get_ident().map(Ident::to_string),
        _ => None,
    }
}
