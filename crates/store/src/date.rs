// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dates, as in RFC 3339.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};
use x509_cert::der::DateTime;

/// A moment in UTC, to the second, such as `2026-11-29T14:00:00Z`. Texts of this form
/// have the order of the moments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Date(String);

impl Date {
    /// The moment `time`. A time that cannot be written, before 1970 or after 9999, is
    /// the beginning of 1970.
    #[must_use]
    pub fn new(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let date = DateTime::from_unix_duration(since.unwrap_or_default());
        Self(date.map_or_else(
            |_| "1970-01-01T00:00:00Z".to_owned(),
            |date| date.to_string(),
        ))
    }

    /// How long after the beginning of 1970 it is.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        let date: Option<DateTime> = self.0.parse().ok();
        date.map_or(Duration::ZERO, |date| date.unix_duration())
    }
}

impl TryFrom<String> for Date {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.parse::<DateTime>() {
            Ok(date) => Ok(Self(date.to_string())),
            Err(_) => Err(format!("{text:?} is not a date as 2026-11-29T14:00:00Z")),
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_as_it_is_written() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_960_800);
        let date = Date::new(moment);
        assert_eq!(date.to_string(), "2026-11-29T14:00:00Z");
        assert_eq!(Date::try_from(date.to_string()), Ok(date.clone()));
        assert_eq!(date.since_epoch().as_secs(), 1_795_960_800);
        for bad in [
            "",
            "2026-11-29",
            "2026-13-29T14:00:00Z",
            "2026-11-29T14:00:00+01",
        ] {
            assert!(Date::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_clock_before_1970_is_no_reason_to_fail() {
        let date = Date::new(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(date.to_string(), "1970-01-01T00:00:00Z");
    }
}
