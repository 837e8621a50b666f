//! Gathers what is to be said of one object while it is read, and why a rule of it could not be understood.

use crate::status::{Message, Severity};

/// What was noticed about one object.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// What is to be said.
    pub(crate) messages: Vec<Message>,
    /// Why the rule at hand cannot be obeyed.
    pub(crate) invalid: Option<String>,
    /// What is refused then, where it is not the requests of one rule.
    pub(crate) refused: Option<&'static str>,
    /// The first rule that could not be understood, and why.
    pub(crate) first_invalid: Option<String>,
    /// The first reference that leads nowhere: a reason in one word, and a sentence.
    pub(crate) unresolved: Option<(&'static str, String)>,
}

impl Reader {
    fn say(&mut self, severity: Severity, field: String, text: String) {
        self.messages.push(Message {
            severity,
            field,
            text,
        });
    }

    /// Something that is good to know.
    pub(crate) fn info(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.say(Severity::Info, field.into(), text.into());
    }

    /// Something that is not honoured.
    pub(crate) fn warn(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.say(Severity::Warning, field.into(), text.into());
    }

    /// Something that is wrong, with an effect that the text names.
    pub(crate) fn error(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.say(Severity::Error, field.into(), text.into());
    }

    /// Something that is wrong, so that the rule refuses.
    pub(crate) fn fail(&mut self, field: &str, text: String) {
        let whole = || format!("{field}: {text}");
        self.invalid.get_or_insert_with(whole);
        self.first_invalid.get_or_insert_with(whole);
        let refused = self.refused.unwrap_or("requests to this rule");
        self.error(field, format!("{text}; {refused} are refused"));
    }

    /// The value, or a failure of the rule.
    pub(crate) fn need<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|text| self.fail(field, text)).ok()
    }

    /// The value, or an error with what is done instead.
    pub(crate) fn want<T>(
        &mut self,
        field: &str,
        value: Result<T, String>,
        instead: &str,
    ) -> Option<T> {
        value
            .map_err(|text| self.error(field, format!("{text}; {instead}")))
            .ok()
    }

    /// Whether anything is not honoured.
    pub(crate) fn is_clean(&self) -> bool {
        self.messages.iter().all(|m| m.severity < Severity::Warning)
    }
}
