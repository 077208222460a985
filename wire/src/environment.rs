//! Secrets in settings, which stand in the environment.

use std::env;

/// A variable that a setting names is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("names `{variable}`, which the environment has not: set it")]
pub struct Unset {
    /// The variable.
    pub variable: String,
}

/// What a setting says: the variable of the environment for `${NAME}`, else the text itself.
///
/// # Errors
/// [`Unset`].
pub fn resolve(setting: &str) -> Result<String, Unset> {
    let variable = setting
        .strip_prefix("${")
        .and_then(|it| it.strip_suffix('}'));
    let Some(variable) = variable else {
        return Ok(setting.to_owned());
    };
    env::var(variable).map_err(|_| Unset {
        variable: variable.to_owned(),
    })
}
