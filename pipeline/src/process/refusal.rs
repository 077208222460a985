//! Why an event was refused: one typed reason each, with a code for machines.

use features::SnapshotError;
use prost::DecodeError;

use super::picture::PictureError;

/// Why an event was refused. The text says what was found, where, and what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no event.
    #[error("the payload is not an event: {0}; check the sender's schema")]
    Malformed(DecodeError),
    /// An envelope around nothing.
    #[error(
        "the event has no payload that version {newest} of the schema knows",
        newest = wire::SCHEMA_VERSION
    )]
    NoPayload,
    /// A version from the future, or none.
    #[error(
        "`schema_version` is {found}, wanted 1 to {newest}; update the pipeline before the senders",
        newest = wire::SCHEMA_VERSION
    )]
    SchemaVersion {
        /// The version.
        found: u32,
    },
    /// An id that must be there is not.
    #[error("`{field}` is empty")]
    EmptyId {
        /// The field.
        field: &'static str,
    },
    /// An id that no sender makes on purpose.
    #[error("`{field}` has {bytes} bytes, wanted at most {most}", most = super::validation::MAX_ID_BYTES)]
    IdTooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A time before 1970 or after 2200.
    #[error("`{field}` is {found} µs since 1970, wanted a time between 1970 and 2200")]
    TimeOutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        found: i64,
    },
    /// An event that happened after the platform learnt of it.
    #[error(
        "`event_time_us` is {ahead_us} µs after `ingest_time_us`, wanted at most {most_us} (`validation.max_clock_skew_seconds`): the sender's clock runs ahead"
    )]
    InFuture {
        /// How far ahead.
        ahead_us: i64,
        /// How far is allowed.
        most_us: i64,
    },
    /// Older than what deduplication remembers.
    #[error(
        "`event_time_us` is {behind_us} µs behind the watermark, wanted at most {most_us} (`deduplication.window_hours`): it could be a duplicate"
    )]
    TooOld {
        /// How far behind.
        behind_us: i64,
        /// How far is allowed.
        most_us: i64,
    },
    /// A share outside 0 to 1, or not a number.
    #[error("`{field}` is {found}, wanted 0 to 1")]
    ShareOutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        found: f32,
    },
    /// A value that is not a number, or infinite.
    #[error("`{field}` is not finite")]
    NotFinite {
        /// The field.
        field: &'static str,
    },
    /// Money below zero.
    #[error("`{field}` is {found}, wanted 0 or more")]
    NegativeAmount {
        /// The field.
        field: &'static str,
        /// Its value.
        found: i64,
    },
    /// A picture that cannot be shown.
    #[error("picture of {what} `{id}`: {source}")]
    BadPicture {
        /// Creative or scene.
        what: &'static str,
        /// Its id.
        id: String,
        /// What is wrong with it.
        source: PictureError,
    },
    /// A snapshot of this feature spec with other columns.
    #[error("feature snapshot: {0}")]
    BadSnapshot(SnapshotError),
    /// An impression of something that no change event has named.
    #[error("creative `{creative_id}` is not known: its CreativeChanged must come first")]
    UnknownCreative {
        /// The creative.
        creative_id: String,
    },
    /// An impression of a creative whose campaign no change event has named.
    #[error(
        "campaign `{campaign_id}` of creative `{creative_id}` is not known: its CampaignChanged must come first"
    )]
    UnknownCampaign {
        /// The creative.
        creative_id: String,
        /// Its campaign.
        campaign_id: String,
    },
    /// The impression id of another impression.
    #[error("impression `{impression_id}` was served already, under another event id")]
    RepeatedImpression {
        /// The impression.
        impression_id: String,
    },
    /// A view or click of another person's impression.
    #[error("impression `{impression_id}` was served to another user than `{user_id}`")]
    OtherUser {
        /// The impression.
        impression_id: String,
        /// Who viewed or clicked.
        user_id: String,
    },
    /// More than one person does.
    #[error("user `{user_id}` has {found} {what}, wanted at most {most} (`guards.{key}`): a bot's")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// Who.
        user_id: String,
        /// How many with this one.
        found: u32,
        /// How many are allowed.
        most: u32,
        /// The setting.
        key: &'static str,
    },
    /// A click that no person makes.
    #[error(
        "the click came {after_us} µs after serving, wanted at least {least_us} (`guards.min_click_ms`): no person is so fast"
    )]
    TooFast {
        /// How long after.
        after_us: i64,
        /// How long at least.
        least_us: i64,
    },
    /// Evidence of more time than there was.
    #[error(
        "`duration_ms` is {duration_ms}, and the evidence came {after_us} µs after serving: the ad cannot have been in view so long"
    )]
    ImpossibleDuration {
        /// The evidence.
        duration_ms: u32,
        /// How long there was.
        after_us: i64,
    },
    /// A view or click at a time that cannot follow from the impression.
    #[error("the {what} is {after_us} µs after {since}, wanted {least_us} to {most_us}")]
    OutsideWindow {
        /// View or click.
        what: &'static str,
        /// Serving or view.
        since: &'static str,
        /// How long after.
        after_us: i64,
        /// The clock skew allowed, negative.
        least_us: i64,
        /// The window.
        most_us: i64,
    },
    /// A view or click whose impression never came.
    #[error("no impression `{impression_id}` came within the window of its {what}")]
    Unattributed {
        /// View or click.
        what: &'static str,
        /// The impression it names.
        impression_id: String,
    },
}

impl Refusal {
    /// The reason's name in dead letters and counters; never changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NoPayload => "no_payload",
            Self::SchemaVersion { .. } => "schema_version",
            Self::EmptyId { .. } => "empty_id",
            Self::IdTooLong { .. } => "id_too_long",
            Self::TimeOutOfRange { .. } => "time_out_of_range",
            Self::InFuture { .. } => "in_future",
            Self::TooOld { .. } => "too_old",
            Self::ShareOutOfRange { .. } => "share_out_of_range",
            Self::NotFinite { .. } => "not_finite",
            Self::NegativeAmount { .. } => "negative_amount",
            Self::BadPicture { .. } => "bad_picture",
            Self::BadSnapshot(_) => "bad_snapshot",
            Self::UnknownCreative { .. } => "unknown_creative",
            Self::UnknownCampaign { .. } => "unknown_campaign",
            Self::RepeatedImpression { .. } => "repeated_impression",
            Self::OtherUser { .. } => "other_user",
            Self::OutsideWindow { .. } => "outside_window",
            Self::TooMany { .. } => "too_many",
            Self::TooFast { .. } => "too_fast",
            Self::ImpossibleDuration { .. } => "impossible_duration",
            Self::Unattributed { .. } => "unattributed",
        }
    }
}
