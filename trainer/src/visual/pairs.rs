//! Pictures of the catalogue, and the clicked pairs among them.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use models::visual::{Picture, PictureError};
use wire::catalogue::{Catalogue, CatalogueError, Pictures};

use crate::table::Examples;

/// Why a gallery could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// The catalogue cannot be read.
    #[error("reading the catalogue artifact")]
    Catalogue(#[from] CatalogueError),
    /// A picture cannot be decoded.
    #[error("picture {digest} of the catalogue")]
    Picture {
        /// Digest of the PNG.
        digest: String,
        /// What is wrong with it.
        source: PictureError,
    },
}

/// All pictures of a catalogue; scenes and creatives are numbered by rising id.
#[derive(Debug, Clone, Default)]
pub struct Gallery {
    /// Pictures of scenes.
    pub scene_pictures: Vec<Picture>,
    /// Pictures of creatives.
    pub creative_pictures: Vec<Picture>,
    /// Genres of the scenes' experiences.
    pub scene_genres: Vec<String>,
    /// Formats of creatives; a placement takes only its own.
    pub creative_formats: Vec<String>,
    /// Campaigns of creatives.
    pub creative_campaigns: Vec<String>,
    scenes: HashMap<String, usize>,
    creatives: HashMap<String, usize>,
}

/// Clicked pairs as numbers into a [`Gallery`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Scene of each pair.
    pub scenes: Vec<usize>,
    /// Clicked creative of each pair.
    pub creatives: Vec<usize>,
    /// `[num_scenes]`: creatives that were seen there, clicked or not.
    pub(super) shown: Vec<Vec<usize>>,
}

impl Pairs {
    /// Creatives that were seen in a scene, by rising number.
    pub(super) fn shown_in(&self, scene: usize) -> &[usize] {
        self.shown.get(scene).map_or(&[], Vec::as_slice)
    }
}

impl Gallery {
    /// Reads a catalogue artifact; what has no picture is left out.
    ///
    /// # Errors
    /// [`PairsError`].
    pub fn load(dir: &Path) -> Result<Self, PairsError> {
        let catalogue = Catalogue::load(dir)?;
        let pictures = Pictures::load(dir)?;
        let decode = |digest: &str| match pictures.get(digest) {
            None => Ok(None),
            Some(png) => Picture::decode(png)
                .map(Some)
                .map_err(|source| PairsError::Picture {
                    digest: digest.to_owned(),
                    source,
                }),
        };
        let mut gallery = Self::default();
        for scene in catalogue.scenes.values() {
            if let Some(picture) = decode(&scene.picture_digest)? {
                gallery
                    .scenes
                    .insert(scene.scene_id.clone(), gallery.scene_pictures.len());
                gallery.scene_pictures.push(picture);
                gallery.scene_genres.push(scene.genre.clone());
            }
        }
        for creative in catalogue.creatives.values() {
            if let Some(picture) = decode(&creative.picture_digest)? {
                gallery.creatives.insert(
                    creative.creative_id.clone(),
                    gallery.creative_pictures.len(),
                );
                gallery.creative_pictures.push(picture);
                gallery.creative_formats.push(creative.format.clone());
                gallery
                    .creative_campaigns
                    .push(creative.campaign_id.clone());
            }
        }
        Ok(gallery)
    }

    /// A gallery without ids: its pairs are made by hand.
    #[cfg(test)]
    pub(super) fn from_pictures(
        scene_pictures: Vec<Picture>,
        creative_pictures: Vec<Picture>,
        creative_formats: Vec<String>,
    ) -> Self {
        Self {
            scene_genres: vec!["obby".to_owned(); scene_pictures.len()],
            creative_campaigns: vec!["c1".to_owned(); creative_pictures.len()],
            scene_pictures,
            creative_pictures,
            creative_formats,
            ..Self::default()
        }
    }

    /// The clicked rows whose scene and creative have pictures, and what was seen beside.
    pub fn pairs(&self, rows: &Examples) -> Pairs {
        let mut pairs = Pairs::default();
        let mut shown = vec![BTreeSet::new(); self.scene_pictures.len()];
        for row in 0..rows.len() {
            let scene = self.scenes.get(&rows.scene_ids[row]);
            let creative = self.creatives.get(&rows.creative_ids[row]);
            let (Some(scene), Some(creative)) = (scene, creative) else {
                continue;
            };
            shown[*scene].insert(*creative);
            if rows.clicks[row] > 0.5 {
                pairs.scenes.push(*scene);
                pairs.creatives.push(*creative);
            }
        }
        pairs.shown = shown
            .into_iter()
            .map(|seen| seen.into_iter().collect())
            .collect();
        pairs
    }

    /// Other creatives of a creative's campaign and format.
    pub(super) fn same_campaign(&self, creative: usize) -> impl Iterator<Item = usize> {
        let campaign = &self.creative_campaigns[creative];
        self.candidates(creative)
            .filter(move |other| *other != creative && self.creative_campaigns[*other] == *campaign)
    }

    /// Creatives that could have stood where this one did.
    pub(super) fn candidates(&self, creative: usize) -> impl Iterator<Item = usize> {
        let format = &self.creative_formats[creative];
        (0..self.creative_formats.len())
            .filter(move |other| self.creative_formats[*other] == *format)
    }

    /// Recall at `k` to expect of a random order.
    pub fn random_recall(&self, pairs: &Pairs, k: usize) -> f64 {
        let one =
            |creative: &usize| (k as f64 / self.candidates(*creative).count() as f64).min(1.0);
        pairs.creatives.iter().map(one).sum::<f64>() / pairs.creatives.len().max(1) as f64
    }
}
