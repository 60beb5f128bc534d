//! Generates the expanded function: the same signature, and a body that is one call into the
//! runtime.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Expr, Ident, Token, Type};

use crate::args::{Args, FormerFingerprint, OnConflict, OnCrash, OnError};
use crate::detach::{self, Copied};
use crate::duration::Time;
use crate::func::{Body, Function, conditions, mentions, mentions_in_templates};
use crate::key::borrowed;
use crate::required;
use crate::transaction;
use crate::types::{self, Output, erased};
use crate::verify::{self, Verify};

/// Expands a function that passed every check.
pub(crate) fn expand(args: &Args, mut function: Function) -> TokenStream {
    let is_detached = args.detach.is_some() && matches!(function.output(), Output::Async(_));
    if is_detached {
        detach::name_all(&mut function.signature);
    }
    let function = &function;
    let Function { attributes, visibility, signature, body: Some(body) } = function else {
        return function.unchanged();
    };
    let detached =
        is_detached.then(|| detach::signature(signature, |name| is_used(args, body, name)));
    let signature = detached.as_ref().unwrap_or(signature);
    let of = |output| Expansion { args, function, body, private: private_path(args), output };
    let contents = match (function.output(), &args.tx) {
        (Output::Async(output), Some(tx)) => of(output).native_in_transaction(tx),
        (Output::Boxed { future, output }, Some(tx)) => of(output).boxed_in_transaction(tx, future),
        (Output::Async(output), None) => of(output).native(),
        (Output::Boxed { future, output }, None) => of(output).boxed(future),
        _ => return function.unchanged(),
    };
    let body = body.braced(&body.inner_attributes, &contents);
    quote!(#(#attributes)* #visibility #signature #body)
}

/// What a function and its options expand to.
struct Expansion<'a> {
    args: &'a Args,
    function: &'a Function,
    body: &'a Body,
    /// The path of what the expansion uses.
    private: TokenStream,
    /// The type that the function returns.
    output: &'a Type,
}

impl Expansion<'_> {
    /// Expands an `async fn`. The body becomes a closure that creates the future where it is run,
    /// because a future that is passed by value is stored twice.
    fn native(&self) -> TokenStream {
        let Self { args, function, body, private, output } = self;
        let is_detached = args.detach.is_some();
        let arguments = if is_detached { detach::copied(function, body) } else { Vec::new() };
        let copies = arguments.iter().map(|argument| argument.copy(private));
        let borrows = arguments.iter().map(Copied::borrow);
        let checks = is_detached.then(|| detach::checks(function, private));
        let checks = checks.into_iter().flatten();
        // A closure captures only the fields that it uses. Without this, a value that only the key
        // uses would be dropped before the body runs: a guard among the arguments would be released
        // too early. Arguments that are never mentioned stay outside until the end, and are
        // reported as unused. A detached body takes those along too, because the outside may end
        // before it. Captures are dropped in the order in which they are mentioned, and arguments
        // are dropped from the last to the first: hence `rev`.
        let wholes = function.moved_names().into_iter().rev().filter_map(|(attributes, name)| {
            if is_used(args, body, &name) {
                let conditions = conditions(attributes);
                Some(quote!(#(#conditions)* let _ = &#name;))
            } else {
                is_detached.then(|| detach::taken_along(attributes, &name))
            }
        });
        let edge = return_type_edge(output);
        let inner = body.following(&quote!(#edge #(#wholes)* #(#borrows)*));
        let local = local("__body");
        let lint = assignments_lint(function);
        let closure = quote!(#(#checks)* #(#copies)* #lint let #local = move || async move #inner;);
        if let Some(OnCrash::Verify(verify)) = &args.on_crash {
            return self.call_after_question(verify, &closure);
        }
        let call = self.call(&closure);
        quote!((#call)().await)
    }

    /// Expands a `fn … -> Pin<Box<dyn Future>>`. The body returns a future, and everything that it
    /// does before is part of the run.
    fn boxed(&self, future: &Type) -> TokenStream {
        let Self { args, body, private, .. } = self;
        let inner = body.braced(&TokenStream::new(), &body.statements);
        let local = local("__body");
        // `#[async_trait]` binds every argument again inside `inner`, including those that only the
        // key uses.
        let closure = quote!(#[allow(unused_variables)] let #local = move || -> #future #inner;);
        if let Some(OnCrash::Verify(verify)) = &args.on_crash {
            let call = self.call_after_question(verify, &closure);
            return quote!(::std::boxed::Box::pin(async move { #call }));
        }
        let call = self.call(&closure);
        quote!(::std::boxed::Box::pin(#private::on_first_poll(#call)))
    }

    /// Expands an `async fn` with `tx`. The body borrows the transaction and returns it. Everything
    /// else that it borrows stays an argument of the outer function, so nothing has to be moved.
    fn native_in_transaction(&self, tx: &Expr) -> TokenStream {
        let Self { function, body, output, .. } = self;
        let edge = return_type_edge(output);
        let loan = transaction::loan(tx, function, body);
        let inner = body.following(&quote!(#edge #loan));
        let lint = assignments_lint(function);
        self.call_in_transaction(tx, &lint, &quote!(|| async #inner))
    }

    /// Expands a boxed future with `tx`. It takes a loan of the transaction that is shorter than
    /// the lifetimes of the signature.
    fn boxed_in_transaction(&self, tx: &Expr, future: &Type) -> TokenStream {
        let Self { function, body, .. } = self;
        let loan = transaction::loan(tx, function, body);
        let inner = body.following(&loan.unwrap_or_default());
        let future = types::without_lifetimes(future);
        // `#[async_trait]` binds every argument again inside `inner`, including those that only the
        // key uses.
        let lint = quote!(#[allow(unused_variables)]);
        let call = self.call_in_transaction(tx, &lint, &quote!(|| -> #future #inner));
        quote!(::std::boxed::Box::pin(async move { #call }))
    }

    /// Generates begin, body and finish, each with its own loan of the transaction.
    fn call_in_transaction(
        &self,
        tx: &Expr,
        lint: &TokenStream,
        closure: &TokenStream,
    ) -> TokenStream {
        let private = &self.private;
        let (call, codec) = (local("__call"), local("__codec"));
        let (begun, claim, result) = (local("__begun"), local("__claim"), local("__result"));
        let start = self.start();
        let lend = required::function(private, "SqlTransaction", &TokenStream::new(), "lend", tx);
        let tx = transaction::borrowed(tx, &lend);
        quote! {
            #start
            let #begun = #private::begin(#call, #codec, #tx).await;
            match #begun {
                #private::Begun::Answered(#result) => #result,
                #private::Begun::Mine(#claim) => {
                    #lint
                    let #result = #claim.body(#closure).await;
                    #claim.finish(#result, #tx).await
                }
            }
        }
    }

    /// Generates a closure that creates the future of the call.
    ///
    /// Otherwise an argument that was borrowed for the key would keep its place in the state of the
    /// outer future, although it has since been moved into the body.
    fn call(&self, closure: &TokenStream) -> TokenStream {
        let Self { args, private, .. } = self;
        let (call, codec, mut body) = (local("__call"), local("__codec"), local("__body"));
        let start = self.start();
        let run = if let Some(detach) = args.detach {
            body.set_span(body.span().located_at(detach));
            detached(private, "run", detach)
        } else {
            quote!(#private::run)
        };
        let run = quote_spanned!(args.detach.unwrap_or_else(Span::call_site)=> #run(#call, #codec, #body));
        quote! {
            move || {
                #start
                #closure
                #run
            }
        }
    }

    /// Generates the call with `on_crash = verify`. The callback borrows the arguments, and it has
    /// finished before the body moves them.
    fn call_after_question(&self, verify: &Verify, closure: &TokenStream) -> TokenStream {
        let Self { args, private, output, .. } = self;
        let (call, codec, mut body) = (local("__call"), local("__codec"), local("__body"));
        let (claim, result) = (local("__claim"), local("__result"));
        let start = self.start();
        let question = verify::question(&verify.question, private, output);
        let (first, last) = required::ends(&verify.question);
        let ask = required::placed(&quote!(#private::verify), first);
        let asked = quote_spanned!(last=> #ask(#call, #codec, #question).await);
        let run = if let Some(detach) = args.detach {
            body.set_span(body.span().located_at(detach));
            let run = detached(private, "run_verified", detach);
            quote_spanned!(detach=> #run(#claim, #body))
        } else {
            quote!(#claim.run(#body))
        };
        quote! {
            #start
            match #asked {
                #private::Verified::Answered(#result) => #result,
                #private::Verified::Mine(#claim) => {
                    #closure
                    #run.await
                }
            }
        }
    }

    /// Generates the description of the call for the runtime. The key comes first, before anything
    /// is moved.
    fn start(&self) -> TokenStream {
        let Self { args, private, output, .. } = self;
        let (key, call, codec) = (local("__key"), local("__call"), local("__codec"));
        let site = self.site();
        let encoded = args.key.as_ref().map(|key| key.encoded(private));
        let start = if let Some(engine) = &args.engine {
            let engine = required::given(private, &quote!(&#private::Idempotency), engine);
            quote!(#private::call_on(#site, #engine, #key))
        } else {
            quote!(#private::call(#site, #key))
        };
        let start =
            if args.name.is_some() { start } else { quote!(#private::unnamed(#start, || {})) };
        let start = if let Some(scope) = &args.scope {
            let scope = scope.encoded(private);
            quote!(#private::scoped(#start, #scope))
        } else {
            start
        };
        let start = self.fingerprinted(start);
        let settings = self.settings();
        let witness = self.witness();
        let erased = erased(output);
        let upgrade = args.upgrade.as_ref().map(|upgrade| {
            let value = quote!(<#erased as #private::Outcome>::Value);
            let upgrade = required::given(private, &quote!(#private::Upgrade<#value>), upgrade);
            quote!(.upgrade(#upgrade))
        });
        let upgrade_error = args.upgrade_error.as_ref().map(|upgrade| {
            let error = quote!(<#erased as #private::Outcome>::Failure);
            let upgrade = required::given(private, &quote!(#private::Upgrade<#error>), upgrade);
            quote!(.upgrade_error(#upgrade))
        });
        quote! {
            let #key = #encoded;
            let #call = #start #settings;
            let #codec = #witness #upgrade #upgrade_error;
        }
    }

    /// Generates the one `static` of the function. It is alone in a block, so the body does not see
    /// its name. But the user's `name` does, which may be a constant that is called `SITE`.
    ///
    /// Its type differs from that of every other function, whatever wrote the function: a macro can
    /// generate two functions at the same place.
    fn site(&self) -> TokenStream {
        let Self { args, function, private, .. } = self;
        let name = if let Some(name) = &args.name {
            name.to_token_stream()
        } else {
            let name = function.signature.ident.unraw().to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #name))
        };
        quote! {{
            static __SITE: #private::Site =
                #private::Site::new(#name, ::core::file!(), ::core::line!()).of(::core::column!(), {
                    enum Function {}
                    ::core::any::TypeId::of::<Function>()
                });
            &__SITE
        }}
    }

    /// Returns `call` with the fingerprint, and the former one.
    fn fingerprinted(&self, call: TokenStream) -> TokenStream {
        let Self { args, private, .. } = self;
        let compute = |value: &Expr| {
            let none = TokenStream::new();
            let of = required::function(private, "Fingerprintable", &none, "fingerprint", value);
            let value = borrowed(value);
            quote!(#of(#value))
        };
        let call = if let Some(value) = &args.fingerprint {
            let fingerprint = compute(value);
            quote!(#private::fingerprinted(#call, #fingerprint))
        } else {
            call
        };
        match &args.former_fingerprint {
            None => call,
            Some(FormerFingerprint::Absent) => quote!(#call.formerly_without_fingerprint()),
            Some(FormerFingerprint::Of(value)) => {
                let fingerprint = compute(value);
                quote!(#private::formerly_fingerprinted(#call, #fingerprint))
            }
        }
    }

    fn settings(&self) -> TokenStream {
        let Self { args, private, .. } = self;
        let time = |time: &Time| match time {
            Time::Literal { .. } => time.to_token_stream(),
            Time::Expression(value) => {
                required::given(private, &quote!(::core::time::Duration), value)
            }
        };
        let ttl = args.ttl.as_ref().map(time).map(|ttl| quote!(.ttl(#ttl)));
        let lease = args.lease.as_ref().map(time).map(|lease| quote!(.lease(#lease)));
        let on_conflict = args.on_conflict.as_ref().map(|answer| match answer {
            OnConflict::Wait => quote!(.wait_on_conflict()),
            OnConflict::WaitFor(patience) => {
                let patience = time(patience);
                quote!(.on_conflict(#private::OnConflict::Wait(#patience)))
            }
            OnConflict::Reject => quote!(.on_conflict(#private::OnConflict::Reject)),
        });
        let on_crash = args.on_crash.as_ref().map(|answer| match answer {
            OnCrash::Hold => quote!(.on_crash(#private::OnCrash::Hold)),
            OnCrash::Retry => quote!(.on_crash(#private::OnCrash::Retry)),
            OnCrash::Resume => quote!(.on_crash(#private::OnCrash::Resume)),
            OnCrash::Verify(Verify { settle, .. }) => {
                settle.iter().map(time).map(|delay| quote!(.settle(#delay))).collect()
            }
        });
        let after_expiry =
            args.after_expiry.as_ref().map(time).map(|time| quote!(.after_expiry(#time)));
        let version = args.version.as_ref().map(|version| quote!(.version(#version)));
        quote!(#ttl #lease #on_conflict #on_crash #after_expiry #version)
    }

    /// Generates the only expression that requires the bounds of the return type, and of the error
    /// type if errors are stored. They are reported at the return type, and a wrong decision about
    /// errors at the option.
    fn witness(&self) -> TokenStream {
        let Self { args, private, output, .. } = self;
        let output = erased(output);
        let (first, last) = required::ends(&output);
        let located = required::placed(private, first);
        let (failure, codec) = (Ident::new("Failure", last), Ident::new("codec", last));
        let failure = quote_spanned!(first=> <#output as #located::Outcome>::#failure);
        let action = match &args.on_error {
            None | Some(OnError::Release) => quote!(#private::ErrorAction::Release),
            Some(OnError::Hold) => quote!(#private::ErrorAction::Hold),
            Some(OnError::Store) => {
                return quote_spanned!(first=> <#failure as #located::StoredError>::#codec::<#output>());
            }
            Some(OnError::Classify(classify)) => {
                let none = TokenStream::new();
                let decide = required::function(private, "Decision", &none, "codec", classify);
                let mut classify = classify.clone();
                if let Expr::Closure(closure) = &mut *classify {
                    closure.capture.get_or_insert(Token![move](closure.inputs_begin.span));
                }
                return quote_spanned!(required::ends(&classify).1=> #decide::<#output, _>(#classify));
            }
        };
        quote_spanned!(first=> <#output as #located::Outcome>::#codec(#action))
    }
}

/// Returns the path of a function that runs a body in a task of its own. A body that cannot is
/// reported at the option.
fn detached(private: &TokenStream, name: &str, detach: Span) -> TokenStream {
    let place = Ident::new("detach", detach);
    required::function(private, "DetachedBody", &TokenStream::new(), name, &place)
}

/// Returns true if the body or an option mentions the argument.
fn is_used(args: &Args, body: &Body, name: &Ident) -> bool {
    mentions(&body.statements, name) || mentions_in_templates(&args.tokens, name)
}

/// Silences a lint: the compiler reports an assignment to a field that is never read for a captured
/// variable, but not for an argument.
fn assignments_lint(function: &Function) -> TokenStream {
    if function.has_mutable_argument() {
        quote!(#[allow(unused_assignments)])
    } else {
        TokenStream::new()
    }
}

/// Never runs, but fixes the type of the async block, so that mistakes in the body are reported
/// there and coercions, like the one to `Box<dyn Trait>`, continue to work.
fn return_type_edge(output: &Type) -> TokenStream {
    let output = erased(output);
    let result = local("__result");
    quote_spanned! {output.span()=>
        #[allow(unknown_lints, unreachable_code, clippy::all, clippy::nursery, clippy::pedantic, clippy::restriction)]
        if false {
            let #result: #output = loop {};
            return #result;
        }
    }
}

/// Returns `::idempotency::__private`, or the same below the path in `crate = …`.
fn private_path(args: &Args) -> TokenStream {
    if let Some(facade) = &args.facade {
        quote!(#facade::__private)
    } else {
        quote!(::idempotency::__private)
    }
}

/// Returns the name of a local variable that the user's tokens cannot see.
fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}
