//! The commands of an operator on a pseudo-terminal, as people see them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use anyhow::{Context, Result};
use lab::Node;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::stage::portolan;

/// Control sequence that a screen begins with which replaces the one before.
const HOME: &str = "\u{1b}[H";

/// Both ends of a terminal with this many columns: that of the person, and that of the program. No other child inherits
/// them, since an end that is open somewhere hides that the program has ended.
fn open(columns: u16) -> Result<(File, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let person = openpt(flags).context("open a pseudo-terminal")?;
    unlockpt(&person)?;
    let size = Winsize {
        ws_row: 50,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&person, size)?;
    let program = ioctl_tiocgptpeer(&person, flags)?;
    Ok((person.into(), program))
}

/// What `portolan` prints with these arguments on a terminal with this many columns. Of a command that replaces its screen
/// until it is interrupted, the first screen.
pub fn screen(node: &Node, arguments: &[&str], columns: u16) -> Result<String> {
    let (mut person, program) = open(columns)?;
    let mut command = node.command(portolan()?);
    command
        .args(arguments)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(program.try_clone()?)
        .stderr(program);
    let mut child = node.start(command)?;
    let mut printed = Vec::new();
    let mut piece = [0; 4096];
    let text = loop {
        let count = match person.read(&mut piece) {
            // EIO (pty(7)): no program has the terminal open any more.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => 0,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        printed.extend(&piece[..count]);
        let text = String::from_utf8_lossy(&printed).replace('\r', "");
        let mut screens = text.split(HOME).skip(1);
        match (screens.next(), screens.next()) {
            (Some(first), Some(_)) => break first.to_owned(),
            _ if count == 0 => break text,
            _ => {}
        }
    };
    // Fails if it has ended.
    let _ = child.kill();
    child.wait()?;
    Ok(text)
}

/// A text without control sequences (ECMA-48): colors, movements of the cursor.
pub fn plain(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        plain.push_str(rest.get(1..).unwrap_or_default());
    }
    plain
}
