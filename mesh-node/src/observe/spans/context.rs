//! Trace context in headers: W3C's (Trace Context, level 1 and 2) and B3 in both its forms (openzipkin/b3-propagation).
//!
//! Invariants: a context is taken whole from one form, W3C's before B3's single header before its several; what does not
//! follow its form to the letter is no context; what goes on names one trace in every form that came.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// Every header of B3's form of several.
const B3_MANY: [HeaderName; 5] = [B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];

/// The longest `tracestate` that a span repeats, in bytes (W3C: at least 512 should go on).
const STATE: usize = 512;

/// What a request brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Context {
    /// The trace and the span within it that asks; none where only a decision came.
    ids: Option<(u128, u64)>,
    /// Whether the trace is kept; `None` when that is left to whoever comes next.
    sampled: Option<bool>,
    /// B3's debug flag: sampled, and not to be thinned out.
    debug: bool,
    /// Whether the trace's name came with 64 bits.
    short: bool,
    /// W3C's flag of level 2 that the trace's name is random.
    random: bool,
}

/// The context that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The trace.
    pub trace: u128,
    /// The span that whoever is asked next has as its parent.
    pub span: u64,
    /// That span's own parent; 0 when it begins the trace.
    pub parent: u64,
    /// Whether the trace is kept.
    pub sampled: bool,
    debug: bool,
    short: bool,
    random: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its headers go on as they are, without a span.
    Leave,
    /// It leaves no span, and says so to whoever comes next.
    Silent(Mark),
    /// It leaves a span.
    Traced(Mark),
}

/// Decides about a request. `sampled` is drawn only where nobody has decided; `dice` gives names.
pub fn decide(
    headers: &HeaderMap,
    sampled: impl FnOnce() -> bool,
    mut dice: impl FnMut() -> u128,
) -> Decision {
    let came = read(headers);
    let keep = match came.and_then(|c| c.sampled) {
        Some(decided) => decided,
        None => sampled(),
    };
    if !keep && came.is_some() {
        return Decision::Leave;
    }
    let came = came.unwrap_or_default();
    let (trace, parent) = came.ids.unwrap_or_else(|| (dice().max(1), 0));
    let mark = Mark {
        trace,
        // The low half of a name is as random as all of it.
        span: (dice() as u64).max(1),
        parent,
        sampled: keep,
        debug: came.debug,
        short: came.short,
        random: came.random,
    };
    match keep {
        true => Decision::Traced(mark),
        false => Decision::Silent(mark),
    }
}

impl Mark {
    /// Puts the context into the headers of a request, in every form that it came in.
    pub fn put(&self, headers: &mut HeaderMap) {
        // Of a trace that is another now nothing is known by whoever wrote this.
        if w3c(headers).is_none() {
            headers.remove(TRACESTATE);
        }
        let flags = u8::from(self.sampled) | u8::from(self.random) << 1;
        let mut text = Text::default();
        text.push(b"00-").hex(self.trace, 32).push(b"-");
        text.hex(self.span.into(), 16).push(b"-");
        text.hex(flags.into(), 2);
        headers.insert(TRACEPARENT, text.value());
        let decided: &'static [u8] = match (self.debug, self.sampled) {
            (true, _) => b"d",
            (false, true) => b"1",
            (false, false) => b"0",
        };
        let digits = if self.short { 16 } else { 32 };
        if headers.contains_key(B3) {
            let mut text = Text::default();
            text.hex(self.trace, digits).push(b"-");
            text.hex(self.span.into(), 16).push(b"-").push(decided);
            if self.parent != 0 {
                text.push(b"-").hex(self.parent.into(), 16);
            }
            headers.insert(B3, text.value());
        }
        if B3_MANY.iter().any(|name| headers.contains_key(name)) {
            headers.insert(B3_TRACE, Text::of(self.trace, digits));
            headers.insert(B3_SPAN, Text::of(self.span.into(), 16));
            match self.parent {
                0 => drop(headers.remove(B3_PARENT)),
                parent => drop(headers.insert(B3_PARENT, Text::of(parent.into(), 16))),
            }
            // With the debug flag the decision is implied.
            if self.debug {
                headers.remove(B3_SAMPLED);
                headers.insert(B3_FLAGS, HeaderValue::from_static("1"));
            } else {
                headers.remove(B3_FLAGS);
                let value = if self.sampled { "1" } else { "0" };
                headers.insert(B3_SAMPLED, HeaderValue::from_static(value));
            }
        }
    }
}

/// The `tracestate` that belongs to a request's trace, for its span to repeat.
pub(super) fn state(headers: &HeaderMap) -> String {
    if w3c(headers).is_none() {
        return String::new();
    }
    let all = headers.get_all(TRACESTATE).iter();
    let texts: Vec<&str> = all.filter_map(|v| v.to_str().ok()).collect();
    let state = texts.join(",");
    if state.len() > STATE {
        return String::new();
    }
    state
}

fn read(headers: &HeaderMap) -> Option<Context> {
    w3c(headers)
        .or_else(|| one(headers, &B3).and_then(single))
        .or_else(|| several(headers))
}

/// The one value of a header; none where there are several.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

/// `traceparent`: version, trace, span and flags; later versions may go on after another dash.
fn w3c(headers: &HeaderMap) -> Option<Context> {
    let text = one(headers, &TRACEPARENT)?;
    let (head, rest) = text.split_at_checked(55)?;
    let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let version = hex(&head[..2], false)?;
    let whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => matches!(rest.first(), None | Some(b'-')),
    };
    if !dashes || !whole {
        return None;
    }
    let trace = hex(&head[3..35], false).filter(|t| *t != 0)?;
    let span = hex(&head[36..52], false).filter(|s| *s != 0)?;
    let flags = hex(&head[53..55], false)?;
    Some(Context {
        ids: Some((trace, span as u64)),
        sampled: Some(flags & 1 == 1),
        debug: false,
        short: false,
        random: flags & 2 == 2,
    })
}

/// `b3`: trace, span, perhaps a decision, perhaps the parent; or a decision alone.
fn single(text: &[u8]) -> Option<Context> {
    if let Some((sampled, debug)) = decision(text) {
        return Some(Context {
            sampled: Some(sampled),
            debug,
            ..Context::default()
        });
    }
    let mut parts = text.split(|b| *b == b'-');
    let (trace, short) = trace_of(parts.next()?)?;
    let span = span_of(parts.next()?)?;
    let decided = match parts.next() {
        Some(text) => Some(decision(text)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        hex_of(parent, 16)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(Context {
        ids: Some((trace, span)),
        sampled: decided.map(|d| d.0),
        debug: decided.is_some_and(|d| d.1),
        short,
        random: false,
    })
}

/// `x-b3-...`: the same in a header each.
fn several(headers: &HeaderMap) -> Option<Context> {
    let debug = one(headers, &B3_FLAGS) == Some(b"1");
    let sampled = match one(headers, &B3_SAMPLED) {
        // Older forms of the same.
        Some(b"true" | b"True" | b"TRUE") => Some(true),
        Some(b"false" | b"False" | b"FALSE") => Some(false),
        Some(text) => decision(text).map(|d| d.0),
        None => None,
    };
    let sampled = if debug { Some(true) } else { sampled };
    let ids = match (one(headers, &B3_TRACE), one(headers, &B3_SPAN)) {
        (Some(trace), Some(span)) => Some((trace_of(trace)?, span_of(span)?)),
        (None, None) => None,
        _ => return None,
    };
    if ids.is_none() && sampled.is_none() {
        return None;
    }
    Some(Context {
        ids: ids.map(|((trace, _), span)| (trace, span)),
        sampled,
        debug,
        short: ids.is_some_and(|((_, short), _)| short),
        random: false,
    })
}

/// Whether it is sampled, and whether that is B3's debug flag.
fn decision(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// A trace's name of 64 or 128 bits, and whether it is the former.
fn trace_of(text: &[u8]) -> Option<(u128, bool)> {
    let short = text.len() == 16;
    let name = hex_of(text, if short { 16 } else { 32 })?;
    (name != 0).then_some((name, short))
}

fn span_of(text: &[u8]) -> Option<u64> {
    let name = hex_of(text, 16)? as u64;
    (name != 0).then_some(name)
}

/// As many hexadecimal digits, whatever their case.
fn hex_of(text: &[u8], digits: usize) -> Option<u128> {
    (text.len() == digits).then_some(())?;
    hex(text, true)
}

/// At most 32 hexadecimal digits; W3C's have to be in lower case.
fn hex(text: &[u8], any_case: bool) -> Option<u128> {
    let mut number = 0;
    for byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' if any_case => byte - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number)
}

/// Text that is made without an allocation of its own.
struct Text {
    bytes: [u8; 72],
    len: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            bytes: [0; 72],
            len: 0,
        }
    }
}

impl Text {
    fn of(number: u128, digits: usize) -> HeaderValue {
        let mut text = Self::default();
        text.hex(number, digits);
        text.value()
    }

    fn push(&mut self, text: &[u8]) -> &mut Self {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
        self
    }

    fn hex(&mut self, number: u128, digits: usize) -> &mut Self {
        for place in (0..digits).rev() {
            let digit = (number >> (4 * place)) as usize & 0xf;
            self.push(&[b"0123456789abcdef"[digit]]);
        }
        self
    }

    fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.bytes[..self.len]).expect("digits, letters and dashes")
    }
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
