//! Generates the expanded function: the same signature, and a body that is one call into the
//! runtime.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Expr, Ident, Token, Type};

use crate::args::{Args, FormerFingerprint, OnConflict, OnCrash, OnError};
use crate::detach::{self, Copied};
use crate::func::{Body, Function, conditions, mentions};
use crate::key::{Key, borrowed};
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
    let private = private_path(args);
    let detached =
        is_detached.then(|| detach::signature(signature, |name| is_used(args, body, name)));
    let signature = detached.as_ref().unwrap_or(signature);
    let contents = match (function.output(), &args.tx) {
        (Output::Async(output), Some(tx)) => {
            native_in_transaction(args, tx, function, body, &private, output)
        }
        (Output::Boxed { future, output }, Some(tx)) => {
            boxed_in_transaction(args, tx, function, body, &private, future, output)
        }
        (Output::Async(output), None) => native(args, function, body, &private, output),
        (Output::Boxed { future, output }, None) => {
            boxed(args, function, body, &private, future, output)
        }
        _ => return function.unchanged(),
    };
    let body = body.braced(&body.inner_attributes, &contents);
    quote!(#(#attributes)* #visibility #signature #body)
}

/// Expands an `async fn`. The body becomes a closure that creates the future where it is run,
/// because a future that is passed by value is stored twice.
fn native(
    args: &Args,
    function: &Function,
    body: &Body,
    private: &TokenStream,
    output: &Type,
) -> TokenStream {
    let is_detached = args.detach.is_some();
    let arguments = if is_detached { detach::copied(function, body) } else { Vec::new() };
    let copies = arguments.iter().map(|argument| argument.copy(private));
    let borrows = arguments.iter().map(Copied::borrow);
    let checks = is_detached.then(|| detach::checks(function, private));
    let checks = checks.into_iter().flatten();
    // A closure captures only the fields that it uses. Without this, a value that only the key uses
    // would be dropped before the body runs: a guard among the arguments would be released too
    // early. Arguments that are never mentioned stay outside until the end, and are reported as
    // unused. A detached body takes those along too, because the outside may end before it.
    // Captures are dropped in the order in which they are mentioned, and arguments are dropped from
    // the last to the first: hence `rev`.
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
        return call_after_question(args, verify, function, private, output, &closure);
    }
    let call = call(args, function, private, output, &closure);
    quote!((#call)().await)
}

/// Expands a `fn … -> Pin<Box<dyn Future>>`. The body returns a future, and everything that it does
/// before is part of the run.
fn boxed(
    args: &Args,
    function: &Function,
    body: &Body,
    private: &TokenStream,
    future: &Type,
    output: &Type,
) -> TokenStream {
    let inner = body.braced(&TokenStream::new(), &body.statements);
    let local = local("__body");
    // `#[async_trait]` binds every argument again inside `inner`, including those that only the key
    // uses.
    let closure = quote!(#[allow(unused_variables)] let #local = move || -> #future #inner;);
    if let Some(OnCrash::Verify(verify)) = &args.on_crash {
        let call = call_after_question(args, verify, function, private, output, &closure);
        return quote!(::std::boxed::Box::pin(async move { #call }));
    }
    let call = call(args, function, private, output, &closure);
    quote!(::std::boxed::Box::pin(#private::on_first_poll(#call)))
}

/// Expands an `async fn` with `tx`. The body borrows the transaction and returns it. Everything
/// else that it borrows stays an argument of the outer function, so nothing has to be moved.
fn native_in_transaction(
    args: &Args,
    tx: &Expr,
    function: &Function,
    body: &Body,
    private: &TokenStream,
    output: &Type,
) -> TokenStream {
    let edge = return_type_edge(output);
    let loan = transaction::loan(tx, function, body);
    let inner = body.following(&quote!(#edge #loan));
    let lint = assignments_lint(function);
    call_in_transaction(args, tx, function, private, output, &lint, &quote!(|| async #inner))
}

/// Expands a boxed future with `tx`. It takes a loan of the transaction that is shorter than the
/// lifetimes of the signature.
fn boxed_in_transaction(
    args: &Args,
    tx: &Expr,
    function: &Function,
    body: &Body,
    private: &TokenStream,
    future: &Type,
    output: &Type,
) -> TokenStream {
    let loan = transaction::loan(tx, function, body);
    let inner = body.following(&loan.unwrap_or_default());
    let future = types::without_lifetimes(future);
    // `#[async_trait]` binds every argument again inside `inner`, including those that only the key
    // uses.
    let lint = quote!(#[allow(unused_variables)]);
    let call = call_in_transaction(
        args,
        tx,
        function,
        private,
        output,
        &lint,
        &quote!(|| -> #future #inner),
    );
    quote!(::std::boxed::Box::pin(async move { #call }))
}

/// Generates begin, body and finish, each with its own loan of the transaction.
fn call_in_transaction(
    args: &Args,
    tx: &Expr,
    function: &Function,
    private: &TokenStream,
    output: &Type,
    lint: &TokenStream,
    closure: &TokenStream,
) -> TokenStream {
    let (call, codec) = (local("__call"), local("__codec"));
    let (begun, claim, result) = (local("__begun"), local("__claim"), local("__result"));
    let start = start(args, function, private, output);
    let lend = located_at(&quote!(#private::lend), tx.span());
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
fn call(
    args: &Args,
    function: &Function,
    private: &TokenStream,
    output: &Type,
    closure: &TokenStream,
) -> TokenStream {
    let (call, codec, body) = (local("__call"), local("__codec"), local("__body"));
    let start = start(args, function, private, output);
    let run = if args.detach.is_some() { quote!(run_detached) } else { quote!(run) };
    quote! {
        move || {
            #start
            #closure
            #private::#run(#call, #codec, #body)
        }
    }
}

/// Generates the call with `on_crash = verify`. The callback borrows the arguments, and it has
/// finished before the body moves them.
fn call_after_question(
    args: &Args,
    verify: &Verify,
    function: &Function,
    private: &TokenStream,
    output: &Type,
    closure: &TokenStream,
) -> TokenStream {
    let (call, codec, body) = (local("__call"), local("__codec"), local("__body"));
    let (claim, result) = (local("__claim"), local("__result"));
    let start = start(args, function, private, output);
    let question = verify::question(&verify.question, private, output);
    let span = verify.question.span();
    let ask = located_at(&quote!(#private::verify), span);
    let run = if args.detach.is_some() { quote!(run_detached) } else { quote!(run) };
    let asked = quote_spanned!(span=> #ask(#call, #codec, #question).await);
    quote! {
        #start
        match #asked {
            #private::Verified::Answered(#result) => #result,
            #private::Verified::Mine(#claim) => {
                #closure
                #claim.#run(#body).await
            }
        }
    }
}

/// Returns true if the body or an option mentions the argument.
fn is_used(args: &Args, body: &Body, name: &Ident) -> bool {
    mentions(&body.statements, name) || mentions(&args.tokens, name)
}

/// Generates the description of the call for the runtime. The key comes first, before anything is
/// moved.
fn start(args: &Args, function: &Function, private: &TokenStream, output: &Type) -> TokenStream {
    let (key, call, codec) = (local("__key"), local("__call"), local("__codec"));
    let site = site(args, function, private);
    let encoded = args.key.as_ref().map(|key| key.encoded(private));
    let start = if let Some(engine) = &args.engine {
        quote!(#private::call_on(#site, #engine, #key))
    } else {
        quote!(#private::call(#site, #key))
    };
    let start = if args.name.is_some() { start } else { quote!(#private::unnamed(#start, || {})) };
    // Parts are encoded one by one: Rust has trait implementations only for tuples of limited
    // length.
    let start = match &args.scope {
        Some(scope @ Key::Parts(_)) => {
            let scope = scope.encoded(private);
            quote!(#private::scoped(#start, #scope))
        }
        _ => start,
    };
    let settings = settings(args, private);
    let witness = witness(args, private, output);
    let upgrade = args.upgrade.as_ref().map(|upgrade| quote!(.upgrade(#upgrade)));
    let upgrade_error = args.upgrade_error.as_ref().map(|upgrade| quote!(.upgrade_error(#upgrade)));
    quote! {
        let #key = #encoded;
        let #call = #start #settings;
        let #codec = #witness #upgrade #upgrade_error;
    }
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

/// Generates the one `static` of the function. It is alone in a block, so the body does not see its
/// name. But the user's `name` does, which may be a constant that is called `SITE`.
///
/// Its type differs from that of every other function, whatever wrote the function: a macro can
/// generate two functions at the same place.
fn site(args: &Args, function: &Function, private: &TokenStream) -> TokenStream {
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

fn settings(args: &Args, private: &TokenStream) -> TokenStream {
    let ttl = args.ttl.as_ref().map(|ttl| quote!(.ttl(#ttl)));
    let scope = args.scope.as_ref().and_then(Key::borrowed).map(|scope| quote!(.scope(#scope)));
    let fingerprint =
        args.fingerprint.as_ref().map(borrowed).map(|value| quote!(.fingerprint(#value)));
    let former = args.former_fingerprint.as_ref().map(|former| match former {
        FormerFingerprint::Absent => quote!(.formerly_without_fingerprint()),
        FormerFingerprint::Of(value) => {
            let value = borrowed(value);
            quote!(.former_fingerprint(#value))
        }
    });
    let lease = args.lease.as_ref().map(|lease| quote!(.lease(#lease)));
    let on_conflict = args.on_conflict.as_ref().map(|answer| match answer {
        OnConflict::Wait => quote!(.wait_on_conflict()),
        OnConflict::WaitFor(time) => quote!(.on_conflict(#private::OnConflict::Wait(#time))),
        OnConflict::Reject => quote!(.on_conflict(#private::OnConflict::Reject)),
    });
    let on_crash = args.on_crash.as_ref().map(|answer| match answer {
        OnCrash::Hold => quote!(.on_crash(#private::OnCrash::Hold)),
        OnCrash::Retry => quote!(.on_crash(#private::OnCrash::Retry)),
        OnCrash::Resume => quote!(.on_crash(#private::OnCrash::Resume)),
        OnCrash::Verify(Verify { settle, .. }) => {
            settle.iter().map(|delay| quote!(.settle(#delay))).collect()
        }
    });
    let after_expiry = args.after_expiry.as_ref().map(|time| quote!(.after_expiry(#time)));
    let version = args.version.as_ref().map(|version| quote!(.version(#version)));
    quote!(#ttl #scope #fingerprint #former #lease #on_conflict #on_crash #after_expiry #version)
}

/// Generates the only expression that requires the bounds of the return type, and of the error type
/// if errors are stored. Its whole path has the span of the return type, or a missing bound would
/// be reported at the attribute.
fn witness(args: &Args, private: &TokenStream, output: &Type) -> TokenStream {
    let span = output.span();
    let private = located_at(private, span);
    let output = erased(output);
    match &args.on_error {
        None | Some(OnError::Release) => quote_spanned!(span=> #private::outcome::<#output>()),
        Some(OnError::Hold) => quote_spanned!(span=> #private::outcome_holding_errors::<#output>()),
        Some(OnError::Store) => {
            quote_spanned!(span=> #private::outcome_storing_errors::<#output>())
        }
        Some(OnError::Classify(classify)) => {
            let mut classify = classify.clone();
            if let Expr::Closure(closure) = &mut *classify {
                closure.capture.get_or_insert(Token![move](closure.inputs_begin.span));
            }
            quote_spanned!(span=> #private::outcome_classifying_errors::<#output, _, _>(#classify))
        }
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

/// Returns the same tokens, resolved as before, but reported at `span`.
fn located_at(tokens: &TokenStream, span: Span) -> TokenStream {
    tokens
        .clone()
        .into_iter()
        .map(|mut token| {
            token.set_span(token.span().located_at(span));
            token
        })
        .collect()
}

/// Returns the name of a local variable that the user's tokens cannot see.
fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}
