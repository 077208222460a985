//! Days, by which tables and files are partitioned.

/// Microseconds of an hour.
pub(crate) const HOUR_US: i64 = 3_600_000_000;

/// Microseconds of a day.
pub(crate) const DAY_US: i64 = 24 * HOUR_US;

/// Days since the Unix epoch of a time between 1970 and 2200, in microseconds.
pub(crate) fn day_of(time_us: i64) -> i32 {
    i32::try_from(time_us.div_euclid(DAY_US)).unwrap_or(0)
}

/// `YYYY-MM-DD` of a number of days since the Unix epoch.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(crate) fn day_name(day: i32) -> String {
    let z = i64::from(day) + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The day of a name, if it is one: the inverse of [`day_name`], by its `days_from_civil`.
pub(crate) fn parse_day(name: &str) -> Option<i32> {
    let mut parts = name.splitn(3, '-').map(str::parse);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) =
        (parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let (year, month, day): (i64, i64, i64) = (year, month, day);
    let shifted = year - i64::from(month <= 2);
    let era = shifted.div_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let year_of_era = shifted.rem_euclid(400);
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    let found = i32::try_from(era * 146_097 + of_era - 719_468).ok()?;
    // A 30th of February has another name.
    (day_name(found) == name).then_some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn days_have_their_calendar_names() {
        let check = |day, expected: &str| assert_eq!(day_name(day), expected);
        check(0, "1970-01-01");
        check(58, "1970-02-28");
        check(59, "1970-03-01");
        check(10_195, "1997-11-30");
        check(11_016, "2000-02-29");
        check(20_600, "2026-05-27");
    }

    #[test]
    fn what_is_no_day_has_no_number() {
        for text in ["2026-02-30", "2026-2-3", "2026-13-01", "day", "", "2026-01"] {
            assert_eq!(parse_day(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_day_is_read_back_from_its_name(day in 0..84_000i32) {
            prop_assert_eq!(parse_day(&day_name(day)), Some(day));
        }

        #[test]
        fn no_text_panics(text in "[0-9-]{0,30}") {
            parse_day(&text);
        }
    }
}
