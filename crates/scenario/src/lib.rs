//! The attribute [`macro@scenario`] of tests that need something of the machine.
//!
//! Which capabilities there are, and what happens when one is missing, is left to `lab::require`.
//! Invariant: the body of a scenario runs only where everything it needs is there.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Marks a test that needs capabilities of the machine: `#[scenario(Nft, Sctp)]`.
///
/// The names are variants of `lab::Capability`; what every lab needs is implied. The function takes no arguments and
/// returns a `Result`. Without a capability the test is skipped loudly, or fails, see `lab::require`.
#[proc_macro_attribute]
pub fn scenario(needs: TokenStream, function: TokenStream) -> TokenStream {
    let mut function: Vec<TokenTree> = function.into_iter().collect();
    let Some(TokenTree::Group(body)) = function.pop() else {
        return error("#[scenario] is for functions");
    };
    if body.delimiter() != Delimiter::Brace {
        return error("#[scenario] is for functions with a body");
    }
    let mut needed = String::new();
    for need in needs {
        match need {
            TokenTree::Ident(name) => needed.push_str(&format!("::lab::Capability::{name},")),
            TokenTree::Punct(comma) if comma.as_char() == ',' => {}
            other => return error(&format!("{other}: not the name of a capability")),
        }
    }
    let guard =
        format!("if !::lab::require(&[{needed}]) {{ return ::core::result::Result::Ok(()); }}");
    let (Ok(mut guarded), Ok(test)) = (
        guard.parse::<TokenStream>(),
        "#[test]".parse::<TokenStream>(),
    ) else {
        return error("#[scenario] does not understand its arguments");
    };
    guarded.extend(body.stream());
    let mut group = Group::new(Delimiter::Brace, guarded);
    group.set_span(body.span());
    test.into_iter()
        .chain(function)
        .chain([TokenTree::Group(group)])
        .collect()
}

fn error(text: &str) -> TokenStream {
    format!("::core::compile_error!({text:?});")
        .parse()
        .unwrap_or_default()
}
