//! The authority at rest in a cluster: the Secret `warren-ca`.
//!
//! `tls.crt`, `tls.key` and, when the chain ends elsewhere, `ca.crt`, as cert-manager writes them; `rotation.json`
//! only while a rotation is under way.
//!
//! Invariants: two replicas never make two roots, because only one of them can create the Secret; a step of a rotation
//! is written only over the version that it was taken from. No other Secret is ever read.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use mesh_model::name::TrustDomain;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Given,
    authority::{CaError, generate, steady},
    chain::checked,
    keep::{Kept, Signer},
};

/// The Secret's name.
pub const NAME: &str = "warren-ca";
/// The key under which a rotation is kept.
const ROTATION: &str = "rotation.json";
/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The Secret.
pub struct SecretStore {
    api: Api<Secret>,
    /// What is around the data, as last read or written.
    around: Mutex<Around>,
}

/// What a Secret has beside its data. A user may have made it, with labels and a type of their own.
#[derive(Clone)]
struct Around {
    metadata: ObjectMeta,
    type_: Option<String>,
    /// What it holds, and the signer that was read from that.
    found: Option<(Signer, Data)>,
}

type Data = BTreeMap<String, ByteString>;

impl Default for Around {
    /// That of a Secret that is made here.
    fn default() -> Self {
        Self {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            found: None,
        }
    }
}

impl Around {
    fn of(secret: Secret, signer: Signer) -> Self {
        let metadata = ObjectMeta {
            managed_fields: None,
            ..secret.metadata
        };
        Self {
            metadata,
            type_: secret.type_,
            found: Some((signer, secret.data.unwrap_or_default())),
        }
    }
}

impl std::fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretStore")
    }
}

/// What a rotation adds to the signer.
#[derive(Default, Serialize, Deserialize)]
struct Rotation {
    next: Option<Signer>,
    old_roots: Vec<String>,
    old_until: u64,
}

impl SecretStore {
    /// The Secret in this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            around: Mutex::default(),
        }
    }

    /// Reads the authority; makes a root when there is none yet, or takes the given CA.
    pub(super) async fn open(
        &self,
        given: Option<Given>,
        domain: &TrustDomain,
    ) -> Result<Kept, CaError> {
        if let Some(kept) = self.read().await? {
            return Ok(kept);
        }
        let signer = given.map_or_else(|| generate(domain), checked)?;
        let kept = steady(signer);
        let secret = secret(&kept, Around::default())?;
        let made = timeout(DEADLINE, self.api.create(&PostParams::default(), &secret)).await;
        match made.map_err(|_| late())? {
            Ok(_) => tracing::info!(secret = NAME, "a root was made and kept in the Secret"),
            // Another replica was first: its root is the mesh's.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed("creating", &error)),
        }
        let kept = self.read().await?;
        kept.ok_or_else(|| CaError::Secret(format!("{NAME} vanished just after it was made")))
    }

    /// Reads the authority; `None` when there is no Secret.
    pub(super) async fn read(&self) -> Result<Option<Kept>, CaError> {
        let found = timeout(DEADLINE, self.api.get_opt(NAME)).await;
        let found = found.map_err(|_| late())?;
        let Some(secret) = found.map_err(|e| failed("reading", &e))? else {
            return Ok(None);
        };
        let none = Data::new();
        let kept = kept_of(secret.data.as_ref().unwrap_or(&none))?;
        *self.around() = Around::of(secret, kept.active.clone());
        Ok(Some(kept))
    }

    /// Writes the authority over the version that was last read; blocks, on a runtime of several threads.
    pub(super) fn write(&self, kept: &Kept) -> Result<(), CaError> {
        // Steps of a rotation are rare; whoever takes one waits for it.
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| handle.block_on(self.put(kept)))
    }

    /// Writes the authority over the version that was last read.
    pub(super) async fn put(&self, kept: &Kept) -> Result<(), CaError> {
        let secret = secret(kept, self.around().clone())?;
        let params = PostParams::default();
        let done = timeout(DEADLINE, self.api.replace(NAME, &params, &secret)).await;
        let written = done
            .map_err(|_| late())?
            .map_err(|e| failed("writing", &e))?;
        *self.around() = Around::of(written, kept.active.clone());
        Ok(())
    }

    fn around(&self) -> MutexGuard<'_, Around> {
        self.around.lock().expect("nothing panics while it is held")
    }
}

fn secret(kept: &Kept, around: Around) -> Result<Secret, CaError> {
    // Whoever brought the signer may watch over how it is written, as cert-manager does.
    let mut data = match around.found {
        Some((signer, data)) if signer == kept.active => data,
        _ => data_of(&kept.active),
    };
    match rotation_of(kept)? {
        Some(text) => data.insert(ROTATION.to_owned(), text),
        None => data.remove(ROTATION),
    };
    Ok(Secret {
        metadata: around.metadata,
        type_: around.type_,
        data: Some(data),
        ..Secret::default()
    })
}

fn data_of(signer: &Signer) -> Data {
    let texts = [
        ("tls.crt", signer.chain.concat()),
        ("tls.key", signer.key.clone()),
    ];
    let data = texts.into_iter();
    data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .collect()
}

fn rotation_of(kept: &Kept) -> Result<Option<ByteString>, CaError> {
    let Kept {
        active: _,
        next,
        old_roots,
        old_until,
    } = kept;
    if next.is_none() && old_roots.is_empty() {
        return Ok(None);
    }
    let rotation = Rotation {
        next: next.clone(),
        old_roots: old_roots.clone(),
        old_until: *old_until,
    };
    let text = serde_json::to_string(&rotation);
    let text = text.map_err(|e| CaError::Secret(format!("{NAME}: {e}")))?;
    Ok(Some(ByteString(text.into_bytes())))
}

fn kept_of(data: &Data) -> Result<Kept, CaError> {
    let text = |key: &str| {
        let bytes = data.get(key).map(|ByteString(bytes)| bytes.as_slice());
        bytes
            .map(std::str::from_utf8)
            .transpose()
            .map_err(|_| CaError::Secret(format!("{NAME}: {key} is not text")))
    };
    let wanted =
        |key: &str| text(key)?.ok_or_else(|| CaError::Secret(format!("{NAME} has no {key}")));
    let (mut chain, key) = (wanted("tls.crt")?.to_owned(), wanted("tls.key")?.to_owned());
    // cert-manager keeps the root apart from the issuer's chain, and may repeat it there.
    if let Some(root) = text("ca.crt")?
        && !chain.contains(root.trim())
    {
        chain = format!("{}\n{root}", chain.trim_end());
    }
    let active = checked(Given { chain, key })?;
    let rotation = match text(ROTATION)? {
        Some(text) => serde_json::from_str(text)
            .map_err(|e| CaError::Secret(format!("{NAME}: {ROTATION}: {e}")))?,
        None => Rotation::default(),
    };
    let Rotation {
        next,
        old_roots,
        old_until,
    } = rotation;
    Ok(Kept {
        active,
        next,
        old_roots,
        old_until,
    })
}

fn late() -> CaError {
    CaError::Secret(format!("{NAME}: the API server did not answer in time"))
}

fn failed(doing: &str, error: &kube::Error) -> CaError {
    let hint = match error {
        kube::Error::Api(status) if status.is_forbidden() => {
            "; the Role of warren-controller has to allow get and update on this Secret, and create on secrets"
        }
        kube::Error::Api(status) if status.is_conflict() => {
            "; somebody else changed it meanwhile: look with `mesh-ctl ca show` and take the step again"
        }
        _ => "",
    };
    CaError::Secret(format!("{doing} {NAME}: {error}{hint}"))
}

#[cfg(test)]
mod tests;
