//! Help of the command line: every flag and command has a first line that can be read alone.

use syn::visit::{self, Visit};

use super::source::{Line, Source, Sources, Violation, documentation};

/// The longest first line, in characters.
const LONGEST: usize = 100;

/// The table of `run`'s flags: name, value and help of each.
const FLAGS: &str = "crates/kube-proxy-config/src/help.rs";

/// First words that refer to something the reader has not seen.
pub(super) const PRONOUNS: &[&str] = &[
    "it", "its", "that", "this", "those", "these", "such", "what", "who", "whose", "which", "how",
    "where", "somebody", "nobody", "so", "there", "they", "their", "theirs", "of",
];

/// An item of the command line: a flag, an argument or a command.
struct Item {
    line: usize,
    name: String,
    /// The first paragraph of its documentation, which `-h` prints.
    first: String,
    /// All of it, which `--help` prints.
    whole: Vec<String>,
}

/// Items without help, and with a first line that is too long or begins with a pronoun.
pub(super) fn violations(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    for source in &sources.files {
        for item in items(source) {
            if let Some(what) = judge(&item.first) {
                found.push(source.violation(item.line, format!("{}: {what}", item.name)));
            }
        }
    }
    found
}

/// All texts that `--help` prints.
pub(super) fn texts(source: &Source) -> Vec<Line> {
    let items = items(source).into_iter();
    items
        .map(|item| (item.line, item.whole.join(" ")))
        .collect()
}

/// What is wrong with a first line.
fn judge(first: &str) -> Option<String> {
    let word = first
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_lowercase();
    let length = first.chars().count();
    if first.is_empty() {
        Some("no help".into())
    } else if PRONOUNS.contains(&word.as_str()) {
        Some(format!("help begins with \"{word}\""))
    } else if length > LONGEST {
        Some(format!(
            "the first line of its help has {length} characters"
        ))
    } else {
        None
    }
}

fn items(source: &Source) -> Vec<Item> {
    let mut items = Items {
        found: Vec::new(),
        has_flags: source.path == FLAGS,
    };
    if let Some(file) = &source.rust {
        items.visit_file(file);
    }
    items.found
}

/// Collects what clap's derived parsers declare, and the rows of the table of flags.
struct Items {
    found: Vec<Item>,
    has_flags: bool,
}

impl Items {
    fn add(&mut self, attributes: &[syn::Attribute], name: &syn::Ident) {
        let whole = documentation(attributes);
        let first: Vec<String> = whole
            .iter()
            .take_while(|line| !line.is_empty())
            .cloned()
            .collect();
        self.found.push(Item {
            line: name.span().start().line,
            name: name.to_string(),
            first: first.join(" "),
            whole,
        });
    }
}

/// Whether one of clap's attributes of the item has one of the words.
fn says(attributes: &[syn::Attribute], words: &[&str]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let is_clap = ["arg", "command", "clap", "value"]
            .iter()
            .any(|name| list.path.is_ident(name));
        let mut tokens = list.tokens.clone().into_iter();
        is_clap && tokens.any(|token| words.contains(&token.to_string().as_str()))
    })
}

fn derives(attributes: &[syn::Attribute], names: &[&str]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let mut tokens = list.tokens.clone().into_iter();
        list.path.is_ident("derive")
            && tokens.any(|token| names.contains(&token.to_string().as_str()))
    })
}

/// Items with these take their help elsewhere, or have none.
const ELSEWHERE: &[&str] = &["flatten", "subcommand", "skip", "hide", "help"];

/// A help line without its default, which is at the end in brackets.
fn without_default(help: &str) -> String {
    help.split(" [").next().unwrap_or_default().to_owned()
}

/// The value of a string literal.
fn literal(expression: &syn::Expr) -> Option<&syn::LitStr> {
    match expression {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) => Some(text),
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Items {
    fn visit_expr_tuple(&mut self, tuple: &'ast syn::ExprTuple) {
        let row: Vec<_> = tuple.elems.iter().filter_map(literal).collect();
        if let ([name, _, help], true) = (row.as_slice(), self.has_flags) {
            self.found.push(Item {
                line: name.span().start().line,
                name: name.value(),
                first: without_default(&help.value()),
                whole: vec![help.value()],
            });
        }
        visit::visit_expr_tuple(self, tuple);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if derives(&item.attrs, &["Parser", "Args"]) {
            for field in &item.fields {
                if let (Some(name), false) = (&field.ident, says(&field.attrs, ELSEWHERE)) {
                    self.add(&field.attrs, name);
                }
            }
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let is_command = derives(&item.attrs, &["Parser", "Subcommand"]);
        if is_command || derives(&item.attrs, &["ValueEnum"]) {
            for variant in &item.variants {
                if !says(&variant.attrs, ELSEWHERE) {
                    self.add(&variant.attrs, &variant.ident);
                }
                for field in variant.fields.iter().filter(|_| is_command) {
                    if let (Some(name), false) = (&field.ident, says(&field.attrs, ELSEWHERE)) {
                        self.add(&field.attrs, name);
                    }
                }
            }
        }
        visit::visit_item_enum(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_without_help_or_with_a_riddle_are_found() {
        let long = "x".repeat(LONGEST + 1);
        let text = format!(
            "#[derive(clap::Args)]\nstruct A {{\n/// Folder of manifests\n///\n/// What it is.\na: u8,\n\
             b: u8,\n/// What comes before names\nc: u8,\n/// {long}\nd: u8,\n#[command(flatten)]\ne: B,\n}}\n\
             #[derive(Debug)]\nstruct B {{ f: u8 }}\n\
             #[derive(Parser)]\nenum C {{\n/// Somebody else's business\nNone,\n}}\n"
        );
        let found = violations(&Sources::of(&[("a.rs", &text)]));
        let found: Vec<&str> = found.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(
            found,
            [
                "b: no help",
                "c: help begins with \"what\"",
                "d: the first line of its help has 101 characters",
                "None: help begins with \"somebody\"",
            ]
        );
    }

    #[test]
    fn rows_of_the_table_of_flags_have_the_same_rule() {
        let text = "const GROUPS: &[G] = &[(\"Node\", &[(\"a\", \"FILE\", \"File to read\"), \
                    (\"b\", \"\", \"What it is\")])];\n";
        let found = violations(&Sources::of(&[(FLAGS, text), ("crates/a/src/b.rs", text)]));
        let found: Vec<&str> = found.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(found, ["b: help begins with \"what\""]);
    }
}
