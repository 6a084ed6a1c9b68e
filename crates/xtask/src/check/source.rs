//! The files of the repository as the rules read them: Rust parsed, everything else as lines.
//!
//! Owns which texts count as seen by users. The rules' own files are left out, since they quote what they forbid.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use crate::run::{git, output};

/// Folders whose files no rule reads.
const EXEMPT: &[&str] = &["crates/xtask/src/check"];

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// File and line, or another name of the place.
    pub(super) place: String,
    /// What is wrong with it.
    pub(super) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// A line of text and its number.
pub(super) type Line = (usize, String);
/// A line of a program: number, code, comment.
type Half<'a> = (usize, &'a str, Option<&'a str>);

/// A file of the repository.
pub(super) struct Source {
    /// Relative to the root.
    pub(super) path: String,
    pub(super) text: String,
    /// The parsed file, if it is Rust.
    pub(super) rust: Option<syn::File>,
}

/// All files that the rules read.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) files: Vec<Source>,
}

impl Sources {
    /// Reads what git tracks, and new files that it does not ignore.
    pub(super) fn read(root: &Path) -> Result<Sources> {
        let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
        let list = output(&mut git(&list)?)?;
        let mut sources = Sources::default();
        for path in String::from_utf8(list)?.lines() {
            let is_text = [".rs", ".md", ".yaml"]
                .iter()
                .any(|end| path.ends_with(end));
            let is_read = (is_text || is_deployed(path))
                && !EXEMPT.iter().any(|folder| path.starts_with(folder));
            // A file may be deleted and not committed yet.
            let file = root.join(path);
            if is_read && file.is_file() {
                let text =
                    std::fs::read_to_string(&file).with_context(|| format!("read {path}"))?;
                sources.add(path, text)?;
            }
        }
        Ok(sources)
    }

    fn add(&mut self, path: &str, text: String) -> Result<()> {
        let rust = match path.ends_with(".rs") {
            true => Some(syn::parse_file(&text).with_context(|| format!("parse {path}"))?),
            false => None,
        };
        self.files.push(Source {
            path: path.to_owned(),
            text,
            rust,
        });
        Ok(())
    }

    /// These files, for tests of the rules.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Sources {
        let mut sources = Sources::default();
        for (path, text) in files {
            sources.add(path, (*text).to_owned()).unwrap();
        }
        sources
    }
}

impl Source {
    /// A violation in a line of this file.
    pub(super) fn violation(&self, line: usize, what: String) -> Violation {
        Violation {
            place: format!("{}:{line}", self.path),
            what,
        }
    }

    /// Whether users run this code: neither tests nor tools of the project.
    pub(super) fn is_shipped(&self) -> bool {
        let is_tool = ["crates/xtask/", "crates/lab/"]
            .iter()
            .any(|tool| self.path.starts_with(tool));
        let is_test = self.path.contains("/tests/") || self.path.ends_with("/tests.rs");
        self.path.starts_with("crates/") && !is_tool && !is_test
    }

    /// Whether people read it as a page: documentation, and what is deployed. A page that is a list of upstream's names has no words
    /// of this project.
    pub(super) fn is_page(&self) -> bool {
        let is_list = self.path == "docs/conformance.md";
        (self.path.ends_with(".md") && !is_list) || is_deployed(&self.path)
    }

    /// All lines.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line> {
        let lines = self.text.lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.to_owned()))
    }

    /// String literals outside of tests.
    pub(super) fn strings(&self) -> Vec<Line> {
        let mut strings = Strings(Vec::new());
        if let Some(file) = &self.rust {
            strings.visit_file(file);
        }
        strings.0
    }

    /// Comments, documentation comments among them. A `//` in a string is none.
    pub(super) fn comments(&self) -> Vec<Line> {
        let comment = |(number, _, comment): Half<'_>| Some((number, comment?.to_owned()));
        self.halves().filter_map(comment).collect()
    }

    /// Lines of a program without their comments.
    pub(super) fn code(&self) -> Vec<Line> {
        let code = |(number, code, _): Half<'_>| (number, code.to_owned());
        self.halves().map(code).collect()
    }

    /// Lines of a program, each as its number, its code, and its comment if it has one.
    fn halves(&self) -> impl Iterator<Item = Half<'_>> {
        let lines = self.rust.iter().flat_map(|_| self.text.lines().enumerate());
        lines.map(|(index, line)| {
            let comment = line.split_once("//");
            let comment = comment.filter(|(before, _)| before.matches('"').count() % 2 == 0);
            let code = comment.map_or(line, |(code, _)| code);
            (index + 1, code, comment.map(|(_, text)| text))
        })
    }

    /// What people read in it: a page's lines, or a program's comments and strings.
    pub(super) fn prose(&self) -> Vec<Line> {
        match self.rust {
            Some(_) => [self.comments(), self.strings()].concat(),
            None => self.lines().collect(),
        }
    }
}

/// Whether a file is for those who install: manifests, the chart and its notes, the recipe of the image.
fn is_deployed(path: &str) -> bool {
    path.starts_with("deploy/") || path == "Dockerfile"
}

/// Whether an item is compiled for tests only.
pub(super) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        let is_cfg_test = path.is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"));
        is_cfg_test
            || path
                .segments
                .last()
                .is_some_and(|last| last.ident == "test")
    })
}

/// Text of the documentation comment, line by line.
pub(super) fn documentation(attributes: &[syn::Attribute]) -> Vec<String> {
    let text = |attribute: &syn::Attribute| {
        let syn::Meta::NameValue(meta) = &attribute.meta else {
            return None;
        };
        let syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) = &meta.value
        else {
            return None;
        };
        meta.path
            .is_ident("doc")
            .then(|| text.value().trim().to_owned())
    };
    attributes.iter().filter_map(text).collect()
}

/// Collects string literals, in macros too.
struct Strings(Vec<Line>);

impl Strings {
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    let line = literal.span().start().line;
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        self.0.push((line, text.value()));
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Strings {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        // Documentation is a comment; other attributes (`error`, `arg`) have texts among their tokens.
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.tokens(called.tokens.clone());
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.0.push((text.span().start().line, text.value()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_macros_and_attributes_are_found_but_none_of_tests() {
        let sources = Sources::of(&[(
            "crates/nft/src/lib.rs",
            "/// Not a string.\n#[error(\"one\")]\nstruct E;\nfn f() { info!(a = 1, \"two\"); g(\"three\") }\n\
             #[cfg(test)]\nmod tests { fn t() { g(\"four\") } }\n",
        )]);
        let found = sources.files[0].strings();
        let expected = [(2, "one"), (4, "two"), (4, "three")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn a_comment_is_told_from_an_address_in_a_string() {
        let sources = Sources::of(&[(
            "a.rs",
            "const A: &str = \"http://a\"; // b\n// c\nfn f() {}\n",
        )]);
        let comments: Vec<String> = sources.files[0]
            .comments()
            .into_iter()
            .map(|line| line.1)
            .collect();
        assert_eq!(comments, [" c"]);
    }
}
