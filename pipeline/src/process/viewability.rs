//! Whether an ad was seen: the rules of the Media Rating Council.
//!
//! | what | pixels in view | for at least |
//! | --- | --- | --- |
//! | picture | 50 % | 1 continuous second |
//! | large picture, 242,500 pixels or more | 30 %, to be disclosed | 1 continuous second |
//! | video | 50 % | 2 continuous seconds |
//!
//! In a 3D world other things stand before an ad: what they hide is not in view.
//! Source: MRC, "Viewable Ad Impression Measurement Guidelines" (2014) and its addendum for large
//! display ads.

use serde::{Deserialize, Serialize};
use wire::{catalogue::Creative, events::ImpressionViewed};

use super::config::ViewabilityConfig;

/// The rule by which an impression was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum ViewRule {
    /// By none: nobody clicks what is not in view.
    #[default]
    Click,
    /// That of pictures.
    Display,
    /// That of large pictures, which a report must disclose.
    LargeDisplay,
    /// That of videos.
    Video,
}

impl ViewRule {
    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Click => "click",
            Self::Display => "display",
            Self::LargeDisplay => "large_display",
            Self::Video => "video",
        }
    }

    /// The rule that evidence fulfils, if any. A creative whose attribute `media` is `video` is one; a
    /// large picture that is seen as any other is seen by their rule.
    pub(crate) fn of(
        evidence: &ImpressionViewed,
        creative: Option<&Creative>,
        config: &ViewabilityConfig,
    ) -> Option<Self> {
        let visible = evidence.viewport_share * (1.0 - evidence.occluded_share);
        let media = creative.and_then(|creative| creative.attributes.get("media"));
        let video = media.is_some_and(|media| media == "video");
        let (rule, least_ms) = match video {
            true => (Self::Video, config.video_min_duration_ms),
            false => (Self::Display, config.min_duration_ms),
        };
        if evidence.duration_ms < least_ms {
            return None;
        }
        let large = !video && evidence.ad_pixels >= config.large_pixels;
        if visible >= config.min_visible_share {
            Some(rule)
        } else if large && visible >= config.large_min_visible_share {
            Some(Self::LargeDisplay)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(media: &str, share: f32, occluded: f32, ms: u32, pixels: u32) -> Option<&'static str> {
        let evidence = ImpressionViewed {
            viewport_share: share,
            occluded_share: occluded,
            duration_ms: ms,
            ad_pixels: pixels,
            ..ImpressionViewed::default()
        };
        let attributes = [("media".to_owned(), media.to_owned())];
        let creative = Creative {
            creative_id: String::new(),
            campaign_id: String::new(),
            category: String::new(),
            title: String::new(),
            format: String::new(),
            picture_digest: String::new(),
            style: Vec::new(),
            first_seen_us: 0,
            attributes: attributes.into(),
        };
        let config = ViewabilityConfig::default();
        ViewRule::of(&evidence, Some(&creative), &config).map(ViewRule::name)
    }

    #[test]
    fn each_kind_of_ad_is_seen_by_its_own_rule() {
        assert_eq!(rule("image", 0.5, 0.0, 1_000, 1_000), Some("display"));
        assert_eq!(rule("image", 0.49, 0.0, 9_000, 1_000), None);
        assert_eq!(rule("image", 0.5, 0.0, 999, 1_000), None);
        assert_eq!(rule("video", 0.5, 0.0, 1_999, 1_000), None);
        assert_eq!(rule("video", 0.5, 0.0, 2_000, 1_000), Some("video"));
    }

    #[test]
    fn a_large_picture_needs_less_of_itself_in_view_and_says_so() {
        assert_eq!(
            rule("image", 0.3, 0.0, 1_000, 242_500),
            Some("large_display")
        );
        assert_eq!(rule("image", 0.3, 0.0, 1_000, 242_499), None);
        assert_eq!(rule("image", 0.29, 0.0, 1_000, 242_500), None);
        assert_eq!(rule("image", 0.6, 0.0, 1_000, 242_500), Some("display"));
        assert_eq!(rule("video", 0.3, 0.0, 2_000, 242_500), None);
    }

    #[test]
    fn what_is_hidden_is_not_in_view() {
        assert_eq!(rule("image", 1.0, 0.5, 1_000, 0), Some("display"));
        assert_eq!(rule("image", 1.0, 0.51, 1_000, 0), None);
        assert_eq!(
            rule("image", 0.9, 0.6, 1_000, 300_000),
            Some("large_display")
        );
    }
}
