// SPDX-License-Identifier: MIT OR Apache-2.0
//! What to measure.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// A stretch of the guest's execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The address of the first instruction that counts.
    pub begin: u64,
    /// Addresses of the first instructions that no longer count.
    pub ends: Vec<u64>,
}

/// What to measure. As text: the plugin's arguments in the syntax of QEMU's option
/// `-plugin FILE,ARGUMENTS`; addresses are hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The file that gets each [`Line`](crate::Line); it is truncated first.
    pub output: PathBuf,
    /// The stretches to measure.
    pub stretches: Vec<Stretch>,
    /// Count the instructions at these addresses, per CPU, instead of ticks. This
    /// slows each of them down.
    pub counted: Option<Range<u64>>,
    /// Report the pages of code at these addresses when they first run.
    pub pages: Option<Range<u64>>,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A comma ends an argument unless it is doubled.
        let output = self.output.display().to_string().replace(',', ",,");
        write!(f, "output={output}")?;
        for Stretch { begin, ends } in &self.stretches {
            write!(f, ",stretch={begin:x}")?;
            for end in ends {
                write!(f, ":{end:x}")?;
            }
        }
        for (name, range) in [("counted", &self.counted), ("pages", &self.pages)] {
            if let Some(Range { start, end }) = range {
                write!(f, ",{name}={start:x}:{end:x}")?;
            }
        }
        Ok(())
    }
}

/// Why the arguments are rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// An argument cannot be understood.
    #[error(
        "{0:?}: the arguments are output=FILE, stretch=BEGIN:END[:END...] for each stretch, \
         counted=BEGIN:END to count instructions there, and pages=BEGIN:END to report which \
         pages there run; addresses are hexadecimal"
    )]
    Unknown(String),
    /// There is no output file.
    #[error("give output=FILE, the file for the measurements")]
    NoOutput,
    /// There is nothing to measure.
    #[error("give stretch=BEGIN:END, the addresses where a measurement begins and ends")]
    NoStretch,
}

impl Request {
    /// Parses the plugin's arguments, one string each, as QEMU passes them.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub fn read<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Self, ArgumentError> {
        let (mut output, mut stretches) = (None, Vec::new());
        let (mut counted, mut pages) = (None, None);
        for argument in arguments {
            let unknown = || ArgumentError::Unknown(argument.to_owned());
            let (name, value) = argument.split_once('=').ok_or_else(unknown)?;
            match name {
                "output" => output = Some(PathBuf::from(value)),
                "stretch" => match addresses(value).as_deref() {
                    Some([begin, ends @ ..]) if !ends.is_empty() => stretches.push(Stretch {
                        begin: *begin,
                        ends: ends.to_vec(),
                    }),
                    _ => return Err(unknown()),
                },
                "counted" => counted = Some(range(value).ok_or_else(unknown)?),
                "pages" => pages = Some(range(value).ok_or_else(unknown)?),
                _ => return Err(unknown()),
            }
        }
        if stretches.is_empty() {
            return Err(ArgumentError::NoStretch);
        }
        Ok(Self {
            output: output.ok_or(ArgumentError::NoOutput)?,
            stretches,
            counted,
            pages,
        })
    }
}

fn range(text: &str) -> Option<Range<u64>> {
    match addresses(text)?.as_slice() {
        &[start, end] => Some(start..end),
        _ => None,
    }
}

fn addresses(text: &str) -> Option<Vec<u64>> {
    let addresses = text.split(':');
    let addresses = addresses.map(|address| u64::from_str_radix(address, 16));
    addresses.collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits `text` into arguments as QEMU does.
    fn arguments(text: &str) -> Vec<String> {
        let text = text.replace(",,", "\0");
        let arguments = text.split(',');
        arguments.map(|one| one.replace('\0', ",")).collect()
    }

    fn read(arguments: &[&str]) -> Result<Request, ArgumentError> {
        Request::read(arguments.iter().copied())
    }

    #[test]
    fn requests_are_parsed() {
        let stretch = |begin, ends: &[u64]| Stretch {
            begin,
            ends: ends.to_vec(),
        };
        let text = 0xffff_82d0_4020_0000..u64::MAX;
        for (counted, pages) in [
            (None, None),
            (Some(text.clone()), None),
            (Some(0..1), Some(text)),
        ] {
            let request = Request {
                output: PathBuf::from("/a, b,,c/passages"),
                stretches: vec![stretch(0xffff_82d0_4020_0000, &[0]), stretch(1, &[2, 3])],
                counted,
                pages,
            };
            let text = request.to_string();
            let arguments = arguments(&text);
            let understood = Request::read(arguments.iter().map(String::as_str));
            assert_eq!(understood, Ok(request), "{text}");
        }
    }

    #[test]
    fn bad_arguments_are_named() {
        for wrong in [
            "",
            "stretch",
            "stretch=",
            "stretch=1",
            "stretch=1:",
            "stretch=1:g",
            "stretch=1:10000000000000000",
            "counted=1",
            "counted=1:2:3",
            "pages=1",
            "file=/f",
        ] {
            let error = ArgumentError::Unknown(wrong.to_owned());
            assert_eq!(read(&["output=/f", "stretch=1:2", wrong]), Err(error));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(read(&["stretch=1:2"]), Err(ArgumentError::NoOutput));
        assert_eq!(read(&["output=/f"]), Err(ArgumentError::NoStretch));
    }
}
