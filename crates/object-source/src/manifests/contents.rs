//! The contents of files as their documents: what is unchanged is kept, and what is new is parsed on all processors.
//!
//! An edit of one object in a file of thousands costs the reading of the file and the parsing of one document. Leaves the
//! meaning of a document to `document`. Invariant: contents are a function of the file's text, whatever was there before, unless
//! a document cannot be parsed: then objects stay that were there before and are missing, since that document may hold them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use service_model::wire::ConversionContext;

use super::document::{self, Fault, Found, Key, Parsed, Remark};
use super::value::Scalars;
use crate::Problem;

/// Documents that a thread takes at a time; fewer are not worth another thread.
const PORTION: usize = 16;
/// More threads gain little: they share the interned texts.
const MAX_THREADS: usize = 4;

/// What the meaning of a document depends on besides its text.
#[derive(Debug)]
pub(super) struct Rules {
    node_ports: RangeInclusive<u16>,
    context: Mutex<ConversionContext>,
    hasher: RandomState,
}

impl Rules {
    pub(super) fn new(node_ports: RangeInclusive<u16>, context: ConversionContext) -> Self {
        Rules {
            node_ports,
            context: Mutex::new(context),
            hasher: RandomState::new(),
        }
    }

    fn digest(&self, text: &str) -> Digest {
        Digest {
            hash: self.hasher.hash_one(text),
            length: text.len(),
        }
    }
}

/// Identifies the text of a document. Two texts share one by a chance of 2^-64, which nobody can improve on: the hash has a
/// secret key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Digest {
    hash: u64,
    length: usize,
}

/// What stays of documents that are gone, while another document cannot be parsed. No text has this digest.
const STAYING: Digest = Digest {
    hash: 0,
    length: usize::MAX,
};
/// Documents of a file that are named because they are not objects or cannot be parsed.
const NAMED: usize = 20;

/// The contents of a file: its documents, in order.
#[derive(Debug, Default)]
pub(super) struct Contents(Vec<Document>);

#[derive(Debug)]
struct Document {
    digest: Digest,
    /// Lines of the file before the document.
    before: usize,
    parsed: Parsed,
}

/// An object of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'c> {
    pub(super) found: &'c Found,
    before: usize,
}

impl Placed<'_> {
    /// First line of the object in the file.
    pub(super) fn line(&self) -> usize {
        self.before + self.found.line
    }

    /// The problems of the object in the file of this name.
    pub(super) fn problems(&self, path: &Path) -> impl Iterator<Item = Problem> {
        let problem = |fault: &Fault| {
            let at = Some((path.to_owned(), self.before + fault.line));
            let invalid = fault.invalid.clone();
            match fault.is_whole {
                true => Problem::Object { at, invalid },
                false => Problem::Field { at, invalid },
            }
        };
        self.found.faults.iter().map(problem)
    }
}

impl Contents {
    /// Objects of our kinds, in the order of the file.
    pub(super) fn objects(&self) -> impl Iterator<Item = Placed<'_>> {
        self.0.iter().flat_map(|document| {
            let placed = |found| Placed {
                found,
                before: document.before,
            };
            document.parsed.objects.iter().map(placed)
        })
    }

    /// Documents that are not objects or cannot be parsed: the line and the reason.
    pub(super) fn strays(&self) -> impl Iterator<Item = (usize, &str)> {
        self.remarks(|parsed| &parsed.strays).take(NAMED)
    }

    /// Kinds that are ignored, with a line of each document that has them.
    pub(super) fn ignored(&self) -> impl Iterator<Item = (usize, &str)> {
        self.remarks(|parsed| &parsed.ignored)
    }

    fn remarks(&self, of: fn(&Parsed) -> &Vec<Remark>) -> impl Iterator<Item = (usize, &str)> {
        self.0.iter().flat_map(move |document| {
            let remarks = of(&document.parsed).iter();
            remarks.map(|remark| (document.before + remark.line, remark.reason.as_str()))
        })
    }

    /// Replaces the contents, and keeps what was parsed of documents that the draft does not have.
    pub(super) fn apply(&mut self, draft: Draft) {
        let mut kept: HashMap<Digest, Vec<Parsed>> = HashMap::new();
        for document in self.0.drain(..) {
            kept.entry(document.digest)
                .or_default()
                .push(document.parsed);
        }
        let documents = draft.0.into_iter().map(|new| Document {
            digest: new.digest,
            before: new.before,
            parsed: match new.parsed {
                Some(parsed) => parsed,
                None => kept
                    .get_mut(&new.digest)
                    .and_then(Vec::pop)
                    .unwrap_or_default(),
            },
        });
        self.0.extend(documents);
        if self.0.iter().any(|document| document.parsed.is_broken) {
            let gone = kept.into_values().flatten();
            self.keep(gone.flat_map(|parsed| parsed.objects).collect());
        }
    }

    /// Keeps those of the objects that are missing.
    fn keep(&mut self, earlier: Vec<Found>) {
        let here: HashSet<&Key> = self.objects().map(|placed| &placed.found.key).collect();
        let missing = earlier
            .into_iter()
            .filter(|found| !here.contains(&found.key));
        let objects = missing.collect();
        self.0.push(Document {
            digest: STAYING,
            before: 0,
            parsed: Parsed {
                objects,
                ..Parsed::default()
            },
        });
    }
}

/// New contents of a file, without the documents that the file has already.
#[derive(Debug)]
pub(super) struct Draft(Vec<New>);

#[derive(Debug)]
struct New {
    digest: Digest,
    before: usize,
    /// `None`: the file has it.
    parsed: Option<Parsed>,
}

/// The text of a file, and its contents so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
    pub(super) known: &'a Contents,
}

/// Parses the texts of files.
pub(super) fn read(texts: &[Text<'_>], rules: &Rules) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut jobs: Vec<&str> = Vec::new();
    for Text { text, known } in texts {
        let mut left: HashMap<Digest, usize> = HashMap::new();
        for document in &known.0 {
            *left.entry(document.digest).or_default() += 1;
        }
        let documents = documents(text).map(|(before, document)| {
            let digest = rules.digest(document);
            let is_known = left.get_mut(&digest).is_some_and(|left| {
                let is_left = *left > 0;
                *left = left.saturating_sub(1);
                is_left
            });
            if !is_known {
                jobs.push(document);
            }
            (digest, before, is_known)
        });
        drafts.push(documents.collect::<Vec<_>>());
    }
    let mut parsed = parse_all(&jobs, rules).into_iter();
    let mut draft = |documents: Vec<(Digest, usize, bool)>| {
        let news = documents.into_iter().map(|(digest, before, is_known)| New {
            digest,
            before,
            parsed: (!is_known).then(|| parsed.next()).flatten(),
        });
        Draft(news.collect())
    };
    drafts.into_iter().map(&mut draft).collect()
}

/// Parses documents on several threads, if there are many.
fn parse_all(documents: &[&str], rules: &Rules) -> Vec<Parsed> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(MAX_THREADS).min(documents.len() / PORTION);
    if threads <= 1 {
        return parse(documents, rules, &mut Scalars::default());
    }
    let portions: Vec<&[&str]> = documents.chunks(PORTION).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut done, mut scalars) = (Vec::new(), Scalars::default());
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(portion) = portions.get(position) else {
                return done;
            };
            done.push((position, parse(portion, rules, &mut scalars)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(position, _)| *position);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

fn parse(documents: &[&str], rules: &Rules, scalars: &mut Scalars) -> Vec<Parsed> {
    let mut parse = |document: &&str| {
        let parsed = document::read(document, &rules.node_ports, &rules.context, scalars);
        parsed.unwrap_or_else(Parsed::broken)
    };
    documents.iter().map(&mut parse).collect()
}

/// The documents of a file, each with the number of lines before it and with its separator, if it has one:
/// in YAML, three dashes at the start of a line can be nothing else. A file with directives (`%YAML`) stays
/// whole, since they stand before the dashes.
fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let has_directives = text.starts_with('%') || text.contains("\n%");
    let mut rest = (!text.is_empty()).then_some(text);
    let mut lines = 0;
    std::iter::from_fn(move || {
        let here = rest?;
        let end = here
            .match_indices("\n---")
            .map(|(at, _)| at + 1)
            .find(|at| {
                let after = here.as_bytes().get(at + 3);
                !has_directives && after.is_none_or(u8::is_ascii_whitespace)
            });
        let (document, left) = end
            .and_then(|end| here.split_at_checked(end))
            .map_or((here, None), |(document, left)| (document, Some(left)));
        let before = lines;
        lines += document.bytes().filter(|byte| *byte == b'\n').count();
        rest = left;
        Some((before, document))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::service;
    use super::*;

    fn rules() -> Rules {
        Rules::new(30000..=32767, ConversionContext::default())
    }

    #[test]
    fn mutated_manifests_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/manifests");
        let rules = rules();
        fuzz::fuzz(&corpus, [], |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return 0;
            };
            let mut contents = Contents::default();
            let parsed = edit(&mut contents, text, &rules).map_or(0, |parsed| parsed.min(9));
            let path = Path::new("a.yaml");
            let problems = contents.objects().flat_map(|placed| {
                let problems = placed.problems(path);
                problems.collect::<Vec<Problem>>()
            });
            let problems: Vec<String> = problems
                .map(|problem| match problem.invalid() {
                    Some(invalid) => format!("{} {}", invalid.kind, invalid.field),
                    None => "file".to_owned(),
                })
                .collect();
            fuzz::outcome((parsed, contents.objects().count().min(9), problems))
        });
    }

    /// Reads a text over these contents. Returns how many documents were parsed.
    fn edit(contents: &mut Contents, text: &str, rules: &Rules) -> Result<usize, Remark> {
        let known = &*contents;
        let draft = read(&[Text { text, known }], rules).remove(0);
        let parsed = draft.0.iter().filter(|new| new.parsed.is_some()).count();
        contents.apply(draft);
        Ok(parsed)
    }

    fn lines(contents: &Contents) -> Vec<(String, usize)> {
        let placed = contents.objects();
        placed
            .map(|placed| (placed.found.key.1.name.to_string(), placed.line()))
            .collect()
    }

    #[test]
    fn only_the_edited_document_of_many_is_parsed() {
        let (rules, mut contents) = (rules(), Contents::default());
        let text = |edited: usize, comment: &str| -> String {
            let documents = (0..200).map(|n| {
                let port = if n == edited { 81 } else { 80 };
                service(&format!("s{n}"), &format!("10.96.0.{}", n + 1), port) + "---\n"
            });
            comment.to_owned() + &documents.collect::<String>()
        };
        assert_eq!(edit(&mut contents, &text(999, ""), &rules), Ok(201));
        let before = lines(&contents);
        assert_eq!(edit(&mut contents, &text(100, ""), &rules), Ok(1));
        assert_eq!(lines(&contents), before);
        // A line more at the top is part of the first document, and moves the others.
        assert_eq!(edit(&mut contents, &text(100, "# a line\n"), &rules), Ok(1));
        let moved = before.into_iter().map(|(name, line)| (name, line + 1));
        assert_eq!(lines(&contents), moved.collect::<Vec<_>>());
        assert_eq!(edit(&mut contents, "", &rules), Ok(0));
        assert!(lines(&contents).is_empty());
    }

    #[test]
    fn a_document_that_comes_twice_is_kept_as_often_as_it_is_there() {
        let (rules, mut contents) = (rules(), Contents::default());
        let one = service("web", "10.96.0.1", 80) + "---\n";
        assert_eq!(edit(&mut contents, &one, &rules), Ok(2));
        assert_eq!(edit(&mut contents, &one.repeat(3), &rules), Ok(2));
        assert_eq!(lines(&contents).len(), 3);
        assert_eq!(edit(&mut contents, &one, &rules), Ok(0));
        assert_eq!(lines(&contents).len(), 1);
    }

    #[test]
    fn a_broken_document_keeps_objects_that_are_missing() {
        let (rules, mut contents) = (rules(), Contents::default());
        let (web, other) = (
            service("web", "10.96.0.1", 80) + "---\n",
            service("other", "10.96.0.2", 80),
        );
        let names = |contents: &Contents| -> Vec<String> {
            let names = lines(contents).into_iter();
            names.map(|(name, _)| name.to_string()).collect()
        };
        edit(&mut contents, &(web.clone() + &other), &rules).unwrap();
        let before = names(&contents);
        let broken = web.clone() + "a: [\n";
        // As long as it is broken, and whatever else is edited.
        for text in [
            broken.clone(),
            broken.clone(),
            "# edited\n".to_owned() + &broken,
        ] {
            edit(&mut contents, &text, &rules).unwrap();
            assert_eq!(names(&contents), before);
            let strays: Vec<_> = contents.strays().collect();
            assert!(matches!(strays.as_slice(), [(_, text)] if text.contains("cannot be parsed")));
        }
        edit(&mut contents, &web, &rules).unwrap();
        assert_eq!(names(&contents).len(), 1);
    }
}
