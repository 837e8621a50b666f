//! What is changed in requests and responses: targets, places to be sent to, headers.
//!
//! Invariants: a new path begins with a slash; the joint of a replaced prefix never has two; the query stays.

use http::{HeaderMap, HeaderValue, header::HOST};

use super::{Asked, HeaderEdits, PathRewrite, Pattern, Redirect, Rewrite};

impl Rewrite {
    /// The new path and query; `None` when the path stays. `covered` is what [`super::Found::Rule`] said.
    pub fn target(&self, path: &str, query: Option<&str>, covered: usize) -> Option<String> {
        let path = self.path.as_ref()?.apply(path, covered);
        Some(with_query(path, query))
    }
}

impl PathRewrite {
    /// The new path.
    pub fn apply(&self, path: &str, covered: usize) -> String {
        let new = match self {
            PathRewrite::Full(new) => new.to_string(),
            PathRewrite::Prefix(new) => {
                let rest = path.get(covered..).unwrap_or_default();
                let twice = new.ends_with('/') && rest.starts_with('/');
                format!("{new}{}", &rest[usize::from(twice)..])
            }
            PathRewrite::Regex(pattern, template) => pattern.replace_all(path, template),
        };
        if new.starts_with('/') {
            new
        } else {
            format!("/{new}")
        }
    }
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
    path
}

impl Redirect {
    /// The value of `location`. `covered` is what [`super::Found::Rule`] said. A host that is given with a port keeps it.
    pub fn location(&self, asked: &Asked<'_>, covered: usize) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(asked.scheme);
        let (own, sent) = split(asked.authority);
        let (host, fixed) = self.host.as_deref().map_or((own, None), split);
        let usual = match scheme {
            "https" => 443,
            _ => 80,
        };
        let port = self.port.or(fixed).unwrap_or_else(|| match self.scheme {
            Some(_) => usual,
            None => sent.unwrap_or(asked.port),
        });
        let path = match &self.path {
            Some(path) => path.apply(asked.path, covered),
            None => asked.path.to_owned(),
        };
        let target = with_query(path, asked.query);
        if port == usual {
            format!("{scheme}://{host}{target}")
        } else {
            format!("{scheme}://{host}:{port}{target}")
        }
    }
}

/// Host and port of an authority.
fn split(authority: &str) -> (&str, Option<u16>) {
    let port = |(host, port): (&'_ str, &'_ str)| Some((host.len(), port.parse().ok()?));
    // The colons of an address in brackets are no port's.
    match authority
        .rsplit_once(':')
        .filter(|(_, p)| !p.ends_with(']'))
    {
        Some(pair) => match port(pair) {
            Some((end, port)) => (&authority[..end], Some(port)),
            None => (authority, None),
        },
        None => (authority, None),
    }
}

impl HeaderEdits {
    /// Changes the headers. Edits of `host` change the authority instead: the new one is returned, and the map's own
    /// `host` is left alone. It cannot be removed.
    pub fn apply(&self, headers: &mut HeaderMap) -> Option<&HeaderValue> {
        let mut authority = None;
        for name in self.remove.iter().filter(|n| **n != HOST) {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            if *name == HOST {
                authority = Some(value);
            } else {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add {
            if *name == HOST {
                authority = authority.or(Some(value));
            } else {
                headers.append(name, value.clone());
            }
        }
        authority
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

impl Pattern {
    /// Every match replaced by a template in RE2's syntax: `\1` to `\9` are groups, `\0` is the match, `\\` a backslash.
    /// What [`Pattern::check_template`] objects to stays as it is.
    pub fn replace_all(&self, text: &str, template: &str) -> String {
        let mut out = String::with_capacity(text.len() + template.len());
        let mut from = 0;
        for groups in self.anywhere().captures_iter(text) {
            let whole = groups.get(0).expect("group 0 is the match");
            out.push_str(&text[from..whole.start()]);
            from = whole.end();
            let mut chars = template.chars();
            while let Some(c) = chars.next() {
                match (c, c == '\\', chars.clone().next()) {
                    (_, true, Some(d)) if d.is_ascii_digit() => {
                        chars.next();
                        let group = d.to_digit(10).and_then(|d| groups.get(d as usize));
                        out.push_str(group.map_or("", |g| g.as_str()));
                    }
                    (_, true, Some('\\')) => {
                        chars.next();
                        out.push('\\');
                    }
                    (c, ..) => out.push(c),
                }
            }
        }
        out.push_str(&text[from..]);
        out
    }

    /// What is wrong with a template for this expression, in one line.
    pub fn check_template(&self, template: &str) -> Result<(), String> {
        let mut chars = template.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                continue;
            }
            match chars.next() {
                Some('\\') => {}
                Some(d) if d.is_ascii_digit() => {
                    let groups = self.anywhere().captures_len() - 1;
                    if d.to_digit(10).is_none_or(|d| d as usize > groups) {
                        return Err(format!("\\{d} names a group, of which there are {groups}"));
                    }
                }
                Some(other) => return Err(format!("\\{other} is not known in a substitution")),
                None => return Err("a backslash at the end".to_owned()),
            }
        }
        Ok(())
    }
}
