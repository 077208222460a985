//! A tiny data folder: bundles made by hand, a feature store, and a server on them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cli::Layout;
use features::{
    Aggregates, Counted, FeatureSet, Schema, SourceEvent,
    facts::{ad_facts, request_facts},
    online::{Online, OnlineConfig},
};
use models::{
    ctr::{
        CtrModel, EmbeddingTable, InputLayout, NetworkConfig, Normalisation, Pooling,
        network::{DcnV2Config, MmoeConfig},
    },
    prescorer::{PreScorer, PreScorerInfo},
};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use registry::{Channel, Digest, Draft, Kind, Registry, Target};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use serving::{config::ServingConfig, server::Server, service::Hook, stages::StageBudgets};
use tonic::{Status, transport::Channel as Transport};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};
use wire::{
    ads::{GetAdsRequest, GetAdsResponse, Placement, ad_service_client::AdServiceClient},
    catalogue::{Campaign, Catalogue, Creative, Experience, Scene, Targeting},
    events::{AgeBand, Context, Event},
    gate::Subject,
    log::SegmentReader,
};

pub const NOW_US: i64 = 1_790_000_000_000_000;
pub const NUM_CREATIVES: usize = 60;
const NUM_CAMPAIGNS: usize = 12;
const DIM: usize = 16;

/// What a bundle is made of.
pub struct Recipe {
    /// Fixes weights and vectors, and is told in every title.
    pub version: u64,
    pub daily_budget_micros: i64,
    /// The campaign's number of each creative.
    pub campaign_of: fn(usize) -> usize,
    /// Members that are left out.
    pub without: Vec<Kind>,
    /// A member's file that is published with these bytes instead.
    pub replaced: Option<(Kind, &'static str, Vec<u8>)>,
    /// Models are told to be of other features, the index of other embeddings.
    pub is_inconsistent: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            version: 1,
            daily_budget_micros: 1_000_000_000,
            campaign_of: |creative| creative % NUM_CAMPAIGNS,
            without: Vec::new(),
            replaced: None,
            is_inconsistent: false,
        }
    }
}

pub struct World {
    _dir: tempfile::TempDir,
    pub layout: Layout,
    pub registry: Registry,
    drafts: PathBuf,
}

impl World {
    /// An empty data folder.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(&dir.path().join("data"));
        Self {
            registry: Registry::open(&layout.registry()).unwrap(),
            layout,
            drafts: dir.path().join("drafts"),
            _dir: dir,
        }
    }

    /// A data folder with a whole bundle and a feature store.
    pub async fn whole() -> Self {
        let world = Self::empty();
        world.publish(&Recipe::default()).await;
        world.publish_store();
        world
    }

    /// Publishes a bundle and moves the channel to it.
    pub async fn publish(&self, recipe: &Recipe) -> Channel {
        let digest = self.publish_bundle(recipe).await;
        self.advance(digest).await
    }

    pub async fn advance(&self, bundle: Digest) -> Channel {
        let channel = self.registry.channel("live").await.unwrap();
        let generation = channel.map_or(0, |channel| channel.generation);
        let target = Target { bundle, share: 1.0 };
        self.registry
            .advance("live", generation, vec![target])
            .await
            .unwrap()
    }

    pub async fn publish_bundle(&self, recipe: &Recipe) -> Digest {
        let features = FeatureSet::load(&shipped_features()).unwrap();
        let catalogue = catalogue(recipe);
        let mut schema = features.schema().clone();
        let mut other_embeddings = None;
        if recipe.is_inconsistent {
            schema.digest = "of-another-time".into();
            other_embeddings = Some(Digest::of(b"other embeddings"));
        }
        let mut members = BTreeMap::new();
        for kind in [
            Kind::Features,
            Kind::Catalogue,
            Kind::Ctr,
            Kind::Prescorer,
            Kind::Embeddings,
            Kind::Index,
        ] {
            if recipe.without.contains(&kind) {
                continue;
            }
            let dir = self.folder(kind);
            match kind {
                Kind::Features => {
                    fs::copy(shipped_features(), dir.join("features.toml")).unwrap();
                }
                Kind::Catalogue => catalogue.save(&dir).unwrap(),
                Kind::Ctr => ranker(&schema, recipe.version).save(&dir).unwrap(),
                Kind::Prescorer => write_prescorer(&schema, recipe.version, &dir),
                Kind::Embeddings => write_embeddings(&catalogue, recipe.version, &dir),
                _ => {
                    let of = other_embeddings.as_ref().or(members.get("embeddings"));
                    write_index(recipe.version, of, &dir);
                }
            }
            if let Some((of, file, bytes)) = &recipe.replaced
                && *of == kind
            {
                fs::write(dir.join(file), bytes).unwrap();
            }
            let digest = self.publish_folder(kind, dir, Vec::new()).await;
            members.insert(kind.name(), digest);
        }
        let dir = self.folder(Kind::Bundle);
        let parents = members.values().cloned().collect();
        let text = json!({ "members": members }).to_string();
        fs::write(dir.join("bundle.json"), text).unwrap();
        self.publish_folder(Kind::Bundle, dir, parents).await
    }

    fn folder(&self, kind: Kind) -> PathBuf {
        let dir = self.drafts.join(kind.name());
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    async fn publish_folder(&self, kind: Kind, dir: PathBuf, parents: Vec<Digest>) -> Digest {
        let draft = Draft {
            kind,
            dir,
            parents,
            metrics: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        self.registry.publish(draft).await.unwrap().digest
    }

    /// Flips a bit in the middle of a published file of a bundle's member.
    pub async fn damage(&self, bundle: &Digest, kind: Kind, file: &str) {
        let folder = self.registry.fetch(bundle).await.unwrap();
        let text = fs::read_to_string(folder.join("bundle.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let member: Digest = record["members"][kind.name()]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let path = self.registry.fetch(&member).await.unwrap().join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }

    /// Publishes a feature store with some history of user `u1`.
    pub fn publish_store(&self) -> u64 {
        self.publish_store_to(
            &OnlineConfig::Embedded,
            &[SourceEvent::Impression, SourceEvent::Click],
        )
    }

    /// Publishes a feature store where it is configured, with `u1` having done some things to a third
    /// of the creatives.
    pub fn publish_store_to(&self, online: &OnlineConfig, sources: &[SourceEvent]) -> u64 {
        let set = FeatureSet::load(&shipped_features()).unwrap();
        let catalogue = catalogue(&Recipe::default());
        let context = request("history", "u1").context.unwrap();
        let scene = catalogue.scenes.get(&context.scene_id);
        let age_band = AgeBand::AgeBand13plus;
        let hour_ago = NOW_US - 3_600_000_000;
        let subject = Subject::admit("u1".to_owned(), age_band, true);
        let facts = request_facts(&subject, age_band, &context, scene, hour_ago);
        let bound = set.bind_request(&facts);
        let mut aggregates = Aggregates::default();
        for creative in catalogue.creatives.values().step_by(3) {
            let campaign = &catalogue.campaigns[&creative.campaign_id];
            let ad = set.bind_ad(&ad_facts(creative, campaign));
            for source in sources {
                let event = Counted::at_once(*source, 0.0, hour_ago);
                aggregates.apply(&set, &bound, Some(&ad), event);
            }
        }
        let online = Online::new(online, &self.layout.online()).unwrap();
        online
            .publish(&set, &aggregates, NOW_US)
            .unwrap()
            .generation
    }

    /// The events in the server's log.
    pub fn logged(&self) -> Vec<Event> {
        let reader = SegmentReader::open(&self.layout.log(), "serving", 0).unwrap();
        reader
            .map(|record| Event::decode(record.unwrap().payload.as_slice()).unwrap())
            .collect()
    }
}

/// Free ports, short polls, and time enough that a busy machine changes nothing.
pub fn config() -> ServingConfig {
    ServingConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        http_listen: ([127, 0, 0, 1], 0).into(),
        poll_ms: 10,
        workers: 2,
        deadline_ms: 30_000,
        max_deadline_ms: 30_000,
        stages: StageBudgets {
            assemble_ms: 10_000,
            retrieve_ms: 10_000,
            prescore_ms: 10_000,
            rank_ms: 10_000,
            auction_ms: 10_000,
        },
        ..ServingConfig::default()
    }
}

pub async fn start(world: &World, config: ServingConfig) -> (Server, Client) {
    start_with(world, config, None).await
}

pub async fn start_with(
    world: &World,
    config: ServingConfig,
    hook: Option<Hook>,
) -> (Server, Client) {
    let server = Server::start_with(&world.layout, config, hook)
        .await
        .unwrap();
    let client = Client::connect(&server).await;
    (server, client)
}

#[derive(Clone)]
pub struct Client(pub AdServiceClient<Transport>);

impl Client {
    pub async fn connect(server: &Server) -> Self {
        let address = format!("http://{}", server.addresses().grpc);
        Self(AdServiceClient::connect(address).await.unwrap())
    }

    pub async fn ask(&self, request: GetAdsRequest) -> Result<GetAdsResponse, Status> {
        let answer = self.0.clone().get_ads(request).await;
        answer.map(tonic::Response::into_inner)
    }
}

/// Waits until the server has swapped its snapshot so often that `condition` holds.
pub async fn until(server: &Server, condition: impl Fn(&serving::engine::Snapshot) -> bool) {
    let mut swaps = server.live().swaps();
    let found = async {
        while !condition(&server.live().load()) {
            swaps.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .expect("the server takes up what is new");
}

pub fn request(request_id: &str, user_id: &str) -> GetAdsRequest {
    GetAdsRequest {
        request_id: request_id.into(),
        user_id: user_id.into(),
        age_band: AgeBand::AgeBand13plus.into(),
        personalisation_consent: true,
        context: Some(Context {
            experience_id: "e0".into(),
            genre: "racing".into(),
            scene_id: "s0".into(),
            device: "phone".into(),
            country: "DE".into(),
            ..Context::default()
        }),
        placement: Some(Placement {
            slots: 3,
            ..Placement::default()
        }),
        deadline_ms: 0,
        request_time_us: NOW_US,
    }
}

/// The answer without what the clock decides.
pub fn timeless(mut answer: GetAdsResponse) -> Vec<u8> {
    let explain = answer.explain.as_mut().unwrap();
    explain.total_us = 0;
    for stage in &mut explain.stages {
        stage.duration_us = 0;
    }
    // A map's order on the wire is not fixed; its content is.
    let mut digests: Vec<_> = explain.artifact_digests.drain().collect();
    digests.sort();
    let mut bytes = answer.encode_to_vec();
    bytes.extend(format!("{digests:?}").into_bytes());
    bytes
}

fn shipped_features() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/features.toml")
}

fn random(version: u64, what: &str) -> ChaCha8Rng {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&version.to_le_bytes());
    for (place, byte) in seed[8..].iter_mut().zip(what.bytes()) {
        *place = byte;
    }
    ChaCha8Rng::from_seed(seed)
}

fn catalogue(recipe: &Recipe) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for number in 0..NUM_CAMPAIGNS {
        let genres: &[&str] = match number % 3 {
            0 => &[],
            1 => &["racing"],
            _ => &["puzzle", "racing"],
        };
        let campaign = Campaign {
            campaign_id: format!("c{number:02}"),
            advertiser_id: "a".into(),
            bid_micros: 500_000 + 50_000 * number as i64,
            daily_budget_micros: recipe.daily_budget_micros,
            targeting: Targeting {
                genres: genres.iter().map(|&genre| genre.into()).collect(),
                adults_only: number % 4 == 0,
                ..Targeting::default()
            },
        };
        catalogue
            .campaigns
            .insert(campaign.campaign_id.clone(), campaign);
    }
    for number in 0..NUM_CREATIVES {
        let creative = Creative {
            creative_id: format!("k{number:03}"),
            campaign_id: format!("c{:02}", (recipe.campaign_of)(number)),
            category: ["shoe", "coat", "bag"][number % 3].into(),
            title: format!("version {}", recipe.version),
            format: ["billboard", "portal"][number % 2].into(),
            picture_digest: format!("{number:064x}"),
            style: vec![number as f32 / NUM_CREATIVES as f32; 8],
            first_seen_us: NOW_US - 86_400_000_000,
            attributes: BTreeMap::new(),
        };
        catalogue
            .creatives
            .insert(creative.creative_id.clone(), creative);
    }
    for number in 0..3 {
        let (scene_id, experience_id) = (format!("s{number}"), format!("e{number}"));
        let genre = ["racing", "puzzle", "racing"][number].to_owned();
        let scene = Scene {
            scene_id: scene_id.clone(),
            experience_id: experience_id.clone(),
            genre: genre.clone(),
            picture_digest: String::new(),
            style: vec![0.5; 8],
        };
        catalogue.scenes.insert(scene_id, scene);
        let experience = Experience {
            experience_id: experience_id.clone(),
            genre,
        };
        catalogue.experiences.insert(experience_id, experience);
    }
    catalogue
}

/// Every other version has two tasks, of which clicks are served.
fn ranker(schema: &Schema, version: u64) -> CtrModel {
    let config = match version % 2 {
        0 => NetworkConfig::Mmoe(MmoeConfig {
            num_experts: 2,
            expert_hidden: vec![8],
            tower_hidden: vec![4],
            ..MmoeConfig::default()
        }),
        _ => NetworkConfig::DcnV2(DcnV2Config {
            num_cross_layers: 1,
            hidden: vec![8],
            ..DcnV2Config::default()
        }),
    };
    let mut random = random(version, "ranker");
    let (rows, dim) = (64, 4);
    let tables: Vec<EmbeddingTable> = schema
        .sparse
        .iter()
        .map(|field| EmbeddingTable {
            name: field.name.clone(),
            features: vec![field.name.clone()],
            rows,
            dim,
            pooling: Pooling::Mean,
            known: None,
            weights: (0..rows * dim)
                .map(|_| random.random_range(-0.5..0.5))
                .collect(),
        })
        .collect();
    let fields = tables.iter().map(|table| (table.name.clone(), dim));
    let layout = InputLayout::new(schema.dense.iter().map(|field| field.name.clone()), fields);
    let network = config.init(&layout, &mut random, &Default::default());
    let normalisation = Normalisation {
        mean: vec![0.0; schema.dense.len()],
        std: vec![1.0; schema.dense.len()],
    };
    let device = Default::default();
    CtrModel::new(
        config,
        schema.clone(),
        normalisation,
        tables,
        network,
        device,
    )
}

/// `rows` unit vectors.
fn vectors(version: u64, what: &str, rows: usize) -> Vec<f32> {
    let mut random = random(version, what);
    let mut values = Vec::with_capacity(rows * DIM);
    for _ in 0..rows {
        let row: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0..1.0)).collect();
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.extend(row.iter().map(|value| value / length));
    }
    values
}

fn write_embeddings(catalogue: &Catalogue, version: u64, dir: &Path) {
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let creatives = bytes(&vectors(version, "creatives", NUM_CREATIVES));
    let scenes = bytes(&vectors(version, "scenes", catalogue.scenes.len()));
    let view = |rows, data| TensorView::new(Dtype::F32, vec![rows, DIM], data).unwrap();
    let views = [
        ("creatives", view(NUM_CREATIVES, &creatives)),
        ("scenes", view(catalogue.scenes.len(), &scenes)),
    ];
    let data = safetensors::serialize(views, None).unwrap();
    fs::write(dir.join("vectors.safetensors"), data).unwrap();
    let row = |id: &String| json!({ "id": id, "picture_digest": "" });
    let ids = json!({
        "creatives": catalogue.creatives.keys().map(row).collect::<Vec<_>>(),
        "scenes": catalogue.scenes.keys().map(row).collect::<Vec<_>>(),
        "model_digest": "",
    });
    fs::write(dir.join("ids.json"), ids.to_string()).unwrap();
}

fn write_index(version: u64, embeddings: Option<&Digest>, dir: &Path) {
    let options = IndexOptions {
        dimensions: DIM,
        metric: MetricKind::Cos,
        quantization: ScalarKind::BF16,
        ..IndexOptions::default()
    };
    let index = Index::new(&options).unwrap();
    index.reserve(NUM_CREATIVES).unwrap();
    let values = vectors(version, "creatives", NUM_CREATIVES);
    for (row, vector) in values.chunks_exact(DIM).enumerate() {
        index.add(row as u64, vector).unwrap();
    }
    let path = dir.join("index.usearch");
    index.save(path.to_str().unwrap()).unwrap();
    let record = json!({
        "embeddings_digest": embeddings.map_or("", Digest::as_str),
        "dim": DIM,
        "ef_search": 128,
    });
    fs::write(dir.join("index.json"), record.to_string()).unwrap();
}

/// Two trees over the first dense features, in LightGBM's text format.
fn write_prescorer(schema: &Schema, version: u64, dir: &Path) {
    let dense: Vec<String> = schema
        .dense
        .iter()
        .map(|field| field.name.clone())
        .collect();
    let column = |name: &str| dense.iter().position(|known| known == name).unwrap();
    let infos = vec!["[0:1]"; dense.len()].join(" ");
    let shift = version as f64 / 100.0;
    let model = format!(
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\n\
         max_feature_idx={}\nobjective=binary sigmoid:1\nfeature_names={}\nfeature_infos={infos}\n\
         tree_sizes=300\n\n\
         Tree=0\nnum_leaves=3\nnum_cat=0\nsplit_feature={} {}\nsplit_gain=1 1\n\
         threshold=0.5 0.5\ndecision_type=2 2\nleft_child=1 -1\nright_child=-2 -3\n\
         leaf_value={} -2.5 -3.5\nleaf_weight=1 1 1\nleaf_count=1 1 1\ninternal_value=0 0\n\
         internal_weight=1 1\ninternal_count=2 1\nis_linear=0\nshrinkage=1\n\n\n\
         end of trees\n\nfeature_importances:\n\nparameters:\nend of parameters\n\n\
         pandas_categorical:null\n",
        dense.len() - 1,
        dense.join(" "),
        column("style_match"),
        column("bid"),
        -2.0 - shift,
    );
    let info = PreScorerInfo {
        feature_digest: schema.digest.clone(),
        dense,
    };
    PreScorer::save(dir, &info, &model).unwrap();
}
