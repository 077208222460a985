//! Embeds creatives and scenes, builds and checks the index, publishes bundles
