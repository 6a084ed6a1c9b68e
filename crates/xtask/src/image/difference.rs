//! Where two programs differ: sections, offsets, and the bytes there.
//!
//! Reads the section headers of 64-bit little-endian ELF files, which the linker keeps when it strips symbols.

/// A section of a program and its place in the file.
#[derive(Debug, PartialEq, Eq)]
struct Section<'a> {
    name: String,
    offset: usize,
    content: &'a [u8],
}

/// Bytes shown of each program, and how many of these are before the first difference.
const SHOWN: (usize, usize) = (64, 24);
/// The type of sections without content in the file, such as `.bss`.
const NO_BITS: u64 = 8;

/// A line for each section that differs, or one for files that are no ELF programs. Empty if the files are equal.
pub(super) fn lines(first: &[u8], second: &[u8]) -> Vec<String> {
    if first == second {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let (before, after) = (sections(first), sections(second));
    let names = |sections: &[Section<'_>]| -> Vec<String> {
        sections.iter().map(|s| s.name.clone()).collect()
    };
    match before.zip(after) {
        Some((before, after)) if names(&before) == names(&after) => {
            for (a, b) in before.iter().zip(&after) {
                lines.extend(line(&a.name, (a.offset, b.offset), a.content, b.content));
            }
        }
        Some((before, after)) => lines.push(format!(
            "sections: {} and {}",
            names(&before).join(" "),
            names(&after).join(" ")
        )),
        None => {}
    }
    if lines.is_empty() {
        lines.extend(line("the file", (0, 0), first, second));
    }
    lines
}

/// How the contents of two sections differ.
fn line(name: &str, offsets: (usize, usize), first: &[u8], second: &[u8]) -> Option<String> {
    if first == second {
        return None;
    }
    let pairs = first.iter().zip(second);
    let differing = pairs.clone().filter(|(a, b)| a != b).count();
    let common = first.len().min(second.len());
    let at = pairs.clone().position(|(a, b)| a != b).unwrap_or(common);
    let (shown, before) = SHOWN;
    let from = at.saturating_sub(before);
    let excerpt = |content: &[u8]| {
        let end = content.len().min(from + shown);
        content
            .get(from..end)
            .unwrap_or_default()
            .escape_ascii()
            .to_string()
    };
    let sizes = match first.len() == second.len() {
        true => format!("{} bytes", first.len()),
        false => format!("{} and {} bytes", first.len(), second.len()),
    };
    Some(format!(
        "{name}: {sizes}, {differing} differ, the first at {:#x} and {:#x} of the files:\n  {}\n  {}",
        offsets.0 + at,
        offsets.1 + at,
        excerpt(first),
        excerpt(second)
    ))
}

/// The sections of an ELF file, in the order of its headers; nothing for other files.
fn sections(file: &[u8]) -> Option<Vec<Section<'_>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let place = |at: usize, length: usize| usize::try_from(number(at, length)?).ok();
    let (table, size, count) = (place(0x28, 8)?, place(0x3a, 2)?, place(0x3c, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let names = place(header(place(0x3e, 2)?)? + 0x18, 8)?;
    let mut sections = Vec::new();
    for index in 0..count {
        let header = header(index)?;
        let (offset, length) = (place(header + 0x18, 8)?, place(header + 0x20, 8)?);
        let content = match number(header + 4, 4)? {
            NO_BITS => &[],
            _ => file.get(offset..offset.checked_add(length)?)?,
        };
        let name = file.get(names.checked_add(place(header, 4)?)?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        sections.push(Section {
            name: String::from_utf8_lossy(name).into_owned(),
            offset,
            content,
        });
    }
    Some(sections)
}

#[cfg(test)]
mod tests {
    use super::lines;

    /// An ELF file of these sections, and one with their names.
    fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(0x40, 0);
        let (mut names, mut headers) = (Vec::new(), Vec::new());
        let mut add = |file: &mut Vec<u8>, name: &str, content: &[u8]| {
            let start = names.len();
            names.extend(name.bytes().chain([0]));
            let mut header = [0; 0x40];
            header[..4].copy_from_slice(&(start as u32).to_le_bytes());
            header[4] = 1;
            header[0x18..0x20].copy_from_slice(&(file.len() as u64).to_le_bytes());
            let content = if content.is_empty() {
                names.as_slice()
            } else {
                content
            };
            header[0x20..0x28].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend(content);
            headers.push(header);
        };
        for (name, content) in sections {
            add(&mut file, name, content);
        }
        add(&mut file, ".shstrtab", &[]);
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3a] = 0x40;
        file[0x3c] = headers.len() as u8;
        file[0x3e] = headers.len() as u8 - 1;
        file.extend(headers.concat());
        file
    }

    #[test]
    fn a_path_in_one_section_is_named_with_its_place() {
        let first = elf(&[(".text", &[0x90; 80]), (".rodata", b"in /tmp/first/x.c")]);
        let second = elf(&[(".text", &[0x90; 80]), (".rodata", b"in /home/other/x")]);
        assert_eq!(lines(&first, &first), Vec::<String>::new());
        let found = lines(&first, &second);
        // The headers follow the shorter section at another place, but the sections in them are what counts.
        let rodata = &found[0];
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(rodata.starts_with(".rodata: 17 and 16 bytes"), "{rodata}");
        let at = 0x40 + 80 + "in /".len();
        assert!(rodata.contains(&format!("first at {at:#x}")), "{rodata}");
        assert!(rodata.contains("/tmp/first/x.c") && rodata.contains("/home/other"));
    }

    #[test]
    fn files_without_sections_are_compared_as_a_whole() {
        let found = lines(b"one text", b"one word");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("first at 0x4"), "{found:?}");
        let fewer = lines(&elf(&[(".text", b"a")]), &elf(&[(".data", b"a")]));
        assert!(fewer[0].starts_with("sections: .text"), "{fewer:?}");
        let cut = &elf(&[(".text", b"a")])[..0x48];
        assert_eq!(lines(cut, b"other").len(), 1);
    }
}
