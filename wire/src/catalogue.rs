//! What can be shown and where: campaigns, creatives, experiences, scenes, and their pictures.
//!
//! The pipeline builds a [`Catalogue`] from change events and publishes it as an artifact of two
//! files: `catalogue.json`, and `pictures.safetensors` with one `U8` tensor of PNG bytes per
//! distinct picture, named by the picture's SHA-256.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

const CATALOGUE_FILE: &str = "catalogue.json";
const PICTURES_FILE: &str = "pictures.safetensors";

/// Why a catalogue could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The file is missing or the disk refused.
    #[error("accessing catalogue file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `catalogue.json` is not a catalogue.
    #[error("reading catalogue from {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// `pictures.safetensors` is truncated or foreign.
    #[error("reading pictures from {}", path.display())]
    Pictures {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
}

/// Everything that serving may choose from, keyed by id. Iteration order is by id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Campaigns by `campaign_id`.
    pub campaigns: BTreeMap<String, Campaign>,
    /// Creatives by `creative_id`.
    pub creatives: BTreeMap<String, Creative>,
    /// Experiences by `experience_id`.
    pub experiences: BTreeMap<String, Experience>,
    /// Scenes by `scene_id`.
    pub scenes: BTreeMap<String, Scene>,
}

/// One advertiser's offer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Campaign {
    /// Unique id.
    pub campaign_id: String,
    /// Who pays.
    pub advertiser_id: String,
    /// Most that one click may cost, in millionths of the account's currency.
    pub bid_micros: i64,
    /// Most that one day may cost, in millionths of the account's currency.
    pub daily_budget_micros: i64,
    /// Where it may show.
    pub targeting: Targeting,
}

/// Where a campaign may show. An empty list admits everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targeting {
    /// Genres of experience.
    pub genres: Vec<String>,
    /// Device classes.
    pub devices: Vec<String>,
    /// Countries, two letters.
    pub countries: Vec<String>,
    /// Never to under-13s or users of unknown age.
    pub adults_only: bool,
}

impl Targeting {
    /// Whether a request with these facts may see the campaign. `is_13plus` is true only when
    /// the age band is known to be 13 or over.
    pub fn admits(&self, genre: &str, device: &str, country: &str, is_13plus: bool) -> bool {
        let admits =
            |list: &[String], value: &str| list.is_empty() || list.iter().any(|v| v == value);
        admits(&self.genres, genre)
            && admits(&self.devices, device)
            && admits(&self.countries, country)
            && (is_13plus || !self.adults_only)
    }
}

/// One thing to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Creative {
    /// Unique id.
    pub creative_id: String,
    /// The campaign that pays for it.
    pub campaign_id: String,
    /// Product category, the advertiser's own word.
    pub category: String,
    /// What a person reads.
    pub title: String,
    /// `billboard`, `portal` or `sponsored_item`.
    pub format: String,
    /// SHA-256 of the PNG in lower-case hex; empty when there is no picture.
    pub picture_digest: String,
    /// Style descriptor of the picture (`features::style`); empty when there is no picture.
    pub style: Vec<f32>,
    /// When the platform first learnt of it, microseconds since the Unix epoch.
    pub first_seen_us: i64,
    /// Further facts by name.
    pub attributes: BTreeMap<String, String>,
}

/// One immersive world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experience {
    /// Unique id.
    pub experience_id: String,
    /// Its genre.
    pub genre: String,
}

/// One viewpoint inside an experience.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Unique id.
    pub scene_id: String,
    /// The experience it belongs to.
    pub experience_id: String,
    /// Genre of that experience.
    pub genre: String,
    /// SHA-256 of the PNG in lower-case hex; empty when there is no picture.
    pub picture_digest: String,
    /// Style descriptor of the picture (`features::style`); empty when there is no picture.
    pub style: Vec<f32>,
}

impl Catalogue {
    /// Reads `catalogue.json` of an artifact folder.
    ///
    /// # Errors
    /// [`CatalogueError`] names the file and why.
    pub fn load(dir: &Path) -> Result<Self, CatalogueError> {
        let path = dir.join(CATALOGUE_FILE);
        let text = fs::read(&path).map_err(|source| CatalogueError::Io {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| CatalogueError::Json { path, source })
    }

    /// Writes `catalogue.json` into an artifact folder.
    ///
    /// # Errors
    /// [`CatalogueError::Io`] when the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), CatalogueError> {
        let path = dir.join(CATALOGUE_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|source| CatalogueError::Json {
            path: path.clone(),
            source,
        })?;
        fs::write(&path, text).map_err(|source| CatalogueError::Io { path, source })
    }
}

/// PNG bytes by SHA-256 of those bytes (lower-case hex).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pictures(BTreeMap<String, Vec<u8>>);

impl Pictures {
    /// Adds a picture under its digest. The caller has computed the digest of these bytes.
    pub fn insert(&mut self, digest: String, png: Vec<u8>) {
        self.0.insert(digest, png);
    }

    /// The PNG bytes of a digest.
    pub fn get(&self, digest: &str) -> Option<&[u8]> {
        self.0.get(digest).map(Vec::as_slice)
    }

    /// Digests and bytes, by digest.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(digest, png)| (digest.as_str(), png.as_slice()))
    }

    /// How many distinct pictures there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the pictures that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|digest, _| keep(digest));
    }

    /// Reads `pictures.safetensors` of an artifact folder.
    ///
    /// # Errors
    /// [`CatalogueError`] names the file and why.
    pub fn load(dir: &Path) -> Result<Self, CatalogueError> {
        let path = dir.join(PICTURES_FILE);
        let bytes = fs::read(&path).map_err(|source| CatalogueError::Io {
            path: path.clone(),
            source,
        })?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|source| CatalogueError::Pictures { path, source })?;
        let pictures = tensors
            .iter()
            .map(|(name, view)| (name.to_owned(), view.data().to_vec()));
        Ok(Self(pictures.collect()))
    }

    /// Writes `pictures.safetensors` into an artifact folder.
    ///
    /// # Errors
    /// [`CatalogueError`] when the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<(), CatalogueError> {
        let path = dir.join(PICTURES_FILE);
        let failed = |source| CatalogueError::Pictures {
            path: path.clone(),
            source,
        };
        let views = self
            .0
            .iter()
            .map(|(digest, png)| Ok((digest, TensorView::new(Dtype::U8, vec![png.len()], png)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let bytes = safetensors::serialize(views, None).map_err(failed)?;
        fs::write(&path, bytes).map_err(|source| CatalogueError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_and_its_pictures_survive_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.experiences.insert(
            "e1".into(),
            Experience {
                experience_id: "e1".into(),
                genre: "racing".into(),
            },
        );
        let mut pictures = Pictures::default();
        pictures.insert("aa".into(), vec![1, 2, 3]);
        pictures.insert("bb".into(), vec![]);

        catalogue.save(dir.path()).unwrap();
        pictures.save(dir.path()).unwrap();

        assert_eq!(Catalogue::load(dir.path()).unwrap(), catalogue);
        assert_eq!(Pictures::load(dir.path()).unwrap(), pictures);
    }

    #[test]
    fn a_truncated_picture_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut pictures = Pictures::default();
        pictures.insert("aa".into(), vec![7; 100]);
        pictures.save(dir.path()).unwrap();
        let path = dir.path().join(PICTURES_FILE);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();

        let error = Pictures::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains(PICTURES_FILE), "{error}");
    }

    #[test]
    fn targeting_admits_by_list_and_by_age() {
        let targeting = Targeting {
            genres: vec!["racing".into()],
            adults_only: true,
            ..Default::default()
        };
        assert!(targeting.admits("racing", "phone", "DE", true));
        assert!(!targeting.admits("puzzle", "phone", "DE", true));
        assert!(!targeting.admits("racing", "phone", "DE", false));
    }
}
