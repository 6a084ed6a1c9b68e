//! No circles between the modules of a crate.
//!
//! Modules with one parent are compared with each other; a deeper module counts as part of the sibling that holds it. A
//! module may use its parent's items, and a parent its child's. An item belongs to the module that declares it, not to one
//! that re-exports it. Tests do not count.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::source::{Source, Sources, Violation, is_test};

/// A path of modules, from the crate's root.
type Path = Vec<String>;

/// Every circle, with a place for each of its arrows.
pub(super) fn violations(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    for root in sources.files.iter().filter(|source| is_root(&source.path)) {
        let modules = modules(sources, root);
        for (parent, arrows) in arrows(&modules) {
            found.extend(circles(&arrows).into_iter().map(|circle| Violation {
                place: place(root, &parent),
                what: shown(&circle, &arrows),
            }));
        }
    }
    found
}

/// Whether a crate begins with this file.
fn is_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs")
}

fn place(root: &Source, parent: &Path) -> String {
    let file = root.path.trim_end_matches(".rs");
    [&[file.to_owned()], parent.as_slice()].concat().join("::")
}

/// What a module holds that matters here.
#[derive(Default)]
struct Module {
    /// Names that `use` brings in, and the paths they stand for.
    imports: BTreeMap<String, Path>,
    /// Modules of which all items are brought in.
    globs: Vec<Path>,
    /// Paths from the root that it refers to, with their places.
    references: Vec<(Path, String)>,
}

type Modules = BTreeMap<Path, Module>;

/// All modules of a crate.
fn modules(sources: &Sources, root: &Source) -> Modules {
    let mut modules = Modules::new();
    let folder = root.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let Some(file) = &root.rust else {
        return modules;
    };
    let mut waiting = vec![(Path::new(), folder.to_owned(), root, file.items.as_slice())];
    while let Some((path, folder, source, items)) = waiting.pop() {
        let mut children = BTreeSet::new();
        for item in items {
            let syn::Item::Mod(child) = item else {
                continue;
            };
            if is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let inside = format!("{folder}/{name}");
            let below = [path.as_slice(), std::slice::from_ref(&name)].concat();
            if let Some((_, items)) = &child.content {
                waiting.push((below, inside, source, items));
            } else {
                let is_it = |file: &&Source| {
                    file.path == format!("{inside}.rs") || file.path == format!("{inside}/mod.rs")
                };
                let Some(file) = sources.files.iter().find(is_it) else {
                    continue;
                };
                let items = file.rust.as_ref().map_or(&[][..], |rust| &rust.items);
                waiting.push((below, inside, file, items));
            }
            children.insert(name);
        }
        let mut reader = Reader {
            path: &path,
            file: &source.path,
            children,
            module: Module::default(),
        };
        items.iter().for_each(|item| reader.visit_item(item));
        let module = reader.module;
        modules.insert(path, module);
    }
    modules
}

/// Reads one module, without the modules in it.
struct Reader<'a> {
    path: &'a Path,
    file: &'a str,
    children: BTreeSet<String>,
    module: Module,
}

impl Reader<'_> {
    /// The path from the root, or `None` when it begins with another crate or a local name.
    fn absolute(&self, path: &[String]) -> Option<Path> {
        let mut from = self.path.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => from.clear(),
            "self" => {}
            "super" => {
                from.pop();
            }
            child if self.children.contains(child) => {
                return Some([from.as_slice(), rest].concat());
            }
            _ => return None,
        }
        rest = &rest[1..];
        while rest.first().is_some_and(|segment| segment == "super") {
            from.pop();
            rest = &rest[1..];
        }
        Some([from.as_slice(), rest].concat())
    }

    fn refer(&mut self, path: &[String], line: usize) -> Option<Path> {
        let path = self.absolute(path)?;
        let place = format!("{}:{line}", self.file);
        self.module.references.push((path.clone(), place));
        Some(path)
    }

    fn import(&mut self, before: &Path, tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before.as_slice(), &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.import(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => {
                group
                    .items
                    .iter()
                    .for_each(|tree| self.import(before, tree));
            }
            syn::UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                if let Some(path) = self.refer(before, line) {
                    self.module.globs.push(path);
                }
            }
            syn::UseTree::Name(name) => self.bind(&name.ident, &name.ident, before),
            syn::UseTree::Rename(rename) => self.bind(&rename.ident, &rename.rename, before),
        }
    }

    fn bind(&mut self, name: &syn::Ident, here: &syn::Ident, before: &Path) {
        let is_self = name == "self" && !before.is_empty();
        let path = match is_self {
            true => before.clone(),
            false => [before.as_slice(), &[name.to_string()]].concat(),
        };
        let here = match (is_self && here == "self", path.last()) {
            (true, Some(last)) => last.clone(),
            _ => here.to_string(),
        };
        if let Some(path) = self.refer(&path, name.span().start().line) {
            self.module.imports.insert(here, path);
        }
    }

    /// Paths in a macro's arguments, which are tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1
                }
                token => {
                    self.end_of_path(&mut path, line);
                    colons = 0;
                    match token {
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                }
            }
        }
        self.end_of_path(&mut path, line);
    }

    fn end_of_path(&mut self, path: &mut Vec<String>, line: usize) {
        if path.len() > 1 {
            self.refer(path, line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {
        // A module of its own.
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

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.import(&Path::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Path = path
            .segments
            .iter()
            .map(|part| part.ident.to_string())
            .collect();
        if segments.len() > 1
            && let Some(first) = path.segments.first()
        {
            self.refer(&segments, first.ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::a)` uses nothing of `a`.
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.tokens(called.tokens.clone());
    }
}

/// The module that declares what the path names.
fn declared_in(modules: &Modules, path: &[String], depth: usize) -> Path {
    let mut at = Path::new();
    for (index, segment) in path.iter().enumerate() {
        let below = [at.as_slice(), std::slice::from_ref(segment)].concat();
        if modules.contains_key(&below) {
            at = below;
            continue;
        }
        let Some(module) = modules.get(&at).filter(|_| depth > 0) else {
            return at;
        };
        if let Some(import) = module.imports.get(segment) {
            let target = [import.as_slice(), &path[index + 1..]].concat();
            // An item and its import may have one name.
            return match target == path {
                true => at,
                false => declared_in(modules, &target, depth - 1),
            };
        }
        return at;
    }
    at
}

/// An arrow and the place of its first reference.
type Arrows = BTreeMap<(String, String), String>;

/// For each parent, which of its children use which.
fn arrows(modules: &Modules) -> BTreeMap<Path, Arrows> {
    /// Re-exports of re-exports that are followed.
    const DEPTH: usize = 8;
    let mut found: BTreeMap<Path, Arrows> = BTreeMap::new();
    for (from, module) in modules {
        for (path, place) in &module.references {
            let to = declared_in(modules, path, DEPTH);
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                let arrows = found.entry(from[..common].to_vec()).or_default();
                let arrow = (a.clone(), b.clone());
                arrows.entry(arrow).or_insert_with(|| place.clone());
            }
        }
    }
    found
}

/// Groups of modules that all lead to each other.
fn circles(arrows: &Arrows) -> Vec<BTreeSet<String>> {
    let reached_from = |start: &String| {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![start];
        while let Some(at) = waiting.pop() {
            for (from, to) in arrows.keys() {
                if from == at && reached.insert(to.clone()) {
                    waiting.push(to);
                }
            }
        }
        reached
    };
    let names: BTreeSet<&String> = arrows.keys().flat_map(|(from, to)| [from, to]).collect();
    let reached: BTreeMap<&String, BTreeSet<String>> = names
        .iter()
        .map(|name| (*name, reached_from(name)))
        .collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for name in names {
        let leads_back = |other: &&String| reached.get(other).is_some_and(|all| all.contains(name));
        let circle: BTreeSet<String> = reached
            .get(name)
            .into_iter()
            .flatten()
            .filter(leads_back)
            .cloned()
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn shown(circle: &BTreeSet<String>, arrows: &Arrows) -> String {
    let inside = arrows
        .iter()
        .filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
    let inside: Vec<String> = inside
        .map(|((from, to), place)| format!("{from} -> {to} ({place})"))
        .collect();
    inside.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        violations(&Sources::of(files))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_circle_through_a_child_is_found_with_its_arrows() {
        let found = found(&[
            ("c/src/lib.rs", "mod a; mod b;\npub use a::inner::Item;\n"),
            ("c/src/a.rs", "pub mod inner;\n"),
            (
                "c/src/a/inner.rs",
                "use crate::b::Thing;\npub struct Item;\n",
            ),
            (
                "c/src/b.rs",
                "pub struct Thing;\nfn f() -> u8 { matches!(x, crate::Item::Y) }\n",
            ),
        ]);
        assert_eq!(
            found,
            ["c/src/lib: a -> b (c/src/a/inner.rs:1), b -> a (c/src/b.rs:2)"]
        );
    }

    #[test]
    fn children_may_use_their_parent_and_tests_anything() {
        let found = found(&[
            ("c/src/lib.rs", "mod a; mod b;\n"),
            ("c/src/a.rs", "mod child;\nuse child::X;\npub struct Y;\n"),
            (
                "c/src/a/child.rs",
                "use super::Y;\nuse crate::b::Z;\npub struct X;\n",
            ),
            (
                "c/src/b.rs",
                "pub struct Z;\n#[cfg(test)]\nmod tests { use crate::a::Y; }\n",
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
