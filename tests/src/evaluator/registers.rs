//! The registers of a rule under evaluation.

use nft::expr::Register;

/// Sixteen registers of four bytes, empty at the start of every rule.
pub(super) struct Registers {
    bytes: [u8; 64],
    /// Registers written so far. Newer kernels refuse rules that read another register.
    written: [bool; 16],
}

impl Default for Registers {
    fn default() -> Self {
        Registers {
            bytes: [0; 64],
            written: [false; 16],
        }
    }
}

impl Registers {
    fn span(register: Register, len: usize) -> Result<(usize, usize), String> {
        let start = usize::from(register.0) * 4;
        let end = start + len.next_multiple_of(4);
        if end > 64 {
            Err(format!("{len} bytes at register {}", register.0))
        } else {
            Ok((start, end))
        }
    }

    pub(super) fn store(&mut self, register: Register, value: &[u8]) -> Result<(), String> {
        let (start, end) = Self::span(register, value.len())?;
        self.bytes[start..end].fill(0);
        self.bytes[start..start + value.len()].copy_from_slice(value);
        self.written[start / 4..end / 4].fill(true);
        Ok(())
    }

    pub(super) fn load(&self, register: Register, len: usize) -> Result<&[u8], String> {
        let (start, end) = Self::span(register, len)?;
        match self.written[start / 4..end / 4].iter().all(|w| *w) {
            true => Ok(&self.bytes[start..start + len]),
            false => Err(format!(
                "register {} read before it was written",
                register.0
            )),
        }
    }
}
