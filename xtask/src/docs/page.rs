// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Markdown page: its links, pictures and names.

use anyhow::Context as _;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use std::path::{Path, PathBuf};

/// The parts of a page that are checked.
#[derive(Default)]
pub(super) struct Page {
    /// Relative to the root of the repository.
    pub(super) path: PathBuf,
    /// Targets of its links and pictures, as written.
    pub(super) targets: Vec<String>,
    /// The anchors of its headings, as GitHub and mdBook make them.
    pub(super) anchors: Vec<String>,
    /// Text in code spans.
    pub(super) spans: Vec<String>,
    /// Lines of code blocks.
    pub(super) code: Vec<String>,
}

impl Page {
    /// Reads the page at `path`, which is relative to `root`.
    pub(super) fn read(root: &Path, path: &Path) -> anyhow::Result<Self> {
        let file = root.join(path);
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(Self::parse(path, &text))
    }

    fn parse(path: &Path, text: &str) -> Self {
        let mut page = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        let mut heading = None::<String>;
        let mut in_code = false;
        for event in Parser::new_ext(text, pulldown_cmark::Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.targets.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors
                        .extend(heading.take().map(|words| slug(&words)));
                }
                Event::Start(Tag::CodeBlock(_)) => in_code = true,
                Event::End(TagEnd::CodeBlock) => in_code = false,
                Event::Html(html) | Event::InlineHtml(html) => {
                    page.targets.extend(attributes(&html, "src"));
                    page.targets.extend(attributes(&html, "srcset"));
                    page.targets.extend(attributes(&html, "href"));
                }
                Event::Text(words) if in_code => {
                    page.code.extend(words.lines().map(str::to_owned));
                }
                Event::Text(words) => add(&mut heading, &words),
                Event::Code(words) => {
                    add(&mut heading, &words);
                    page.spans.push(words.into_string());
                }
                _ => {}
            }
        }
        page
    }

    /// The target of a relative link, from the root of the repository; `None` for a
    /// URL and for an anchor on this page.
    pub(super) fn resolve(&self, target: &str) -> Option<PathBuf> {
        let file = target.split('#').next().unwrap_or_default();
        if file.is_empty() || file.contains(':') {
            return None;
        }
        let mut path = self.path.parent().unwrap_or(Path::new("")).to_owned();
        for part in Path::new(file).components() {
            match part {
                std::path::Component::ParentDir => drop(path.pop()),
                part => path.push(part),
            }
        }
        Some(path)
    }
}

fn add(heading: &mut Option<String>, words: &str) {
    if let Some(heading) = heading {
        heading.push_str(words);
    }
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The values of the attribute `name` in a piece of HTML.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = String> + 'a {
    html.split(&format!(" {name}=\""))
        .skip(1)
        .filter_map(|rest| rest.split('"').next().map(str::to_owned))
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pictures_anchors_and_code_are_found() {
        let text = "# The `a` and *b*, c\n[x](../y.md#z) ![p](p.svg) <img alt=\"\" src=\"q.svg\">\n\
                    | t |\n|---|\n| [cell](w.md) `crates/abi` |\n\n```sh\nxsplice list\n```\n";
        let page = Page::parse(Path::new("docs/a.md"), text);
        assert_eq!(page.anchors, ["the-a-and-b-c"]);
        assert_eq!(page.targets, ["../y.md#z", "p.svg", "q.svg", "w.md"]);
        assert_eq!(page.spans, ["a", "crates/abi"]);
        assert_eq!(page.code, ["xsplice list"]);
        assert_eq!(page.resolve("../y.md#z"), Some(PathBuf::from("y.md")));
        assert_eq!(page.resolve("p.svg"), Some(PathBuf::from("docs/p.svg")));
        assert_eq!(page.resolve("https://xenproject.org"), None);
        assert_eq!(page.resolve("#here"), None);
    }
}
