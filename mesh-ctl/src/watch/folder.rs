//! What a folder of manifests holds, and what a change of one file means. No I/O: texts come in, deltas go out.
//!
//! Invariants: an object that two places give belongs to the first of them by file and line, and the other is
//! named. While a document of a file cannot be read, objects of that file that are missing stay as they were.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mesh_k8s::ObjectRef;
use mesh_translate::{Broken, Origin};

use super::{
    Delta,
    document::{self, Found},
};

/// Where something stands: file, then line.
type Place = (Arc<str>, u32);

/// The documents of all files.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<Arc<str>, Vec<Held>>,
    /// Who gives which object, by place, with the fingerprint of its document. Mostly one.
    given: HashMap<ObjectRef, Vec<(Place, u64, Found)>>,
    /// What was last said about each object.
    said: HashMap<ObjectRef, Said>,
    /// Places that give an object again, as they were last named.
    again: HashMap<ObjectRef, BTreeMap<Place, Place>>,
}

/// An object of a file.
#[derive(Debug)]
struct Held {
    digest: u64,
    /// The line at which its document begins.
    start: u32,
    /// Its number within the document.
    found: Found,
}

#[derive(Clone, Debug, PartialEq)]
struct Said {
    place: Place,
    digest: u64,
    bad: bool,
}

impl Folder {
    /// The text of a file has become `text`; `None` when the file is gone.
    pub fn update(&mut self, file: &str, text: Option<&str>) -> Vec<Delta> {
        let file: Arc<str> = file.into();
        let old = self.files.remove(&file).unwrap_or_default();
        let mut touched: BTreeSet<ObjectRef> =
            old.iter().map(|held| reference(&file, held)).collect();
        let new = text.map(|text| read(text, &old)).unwrap_or_default();
        let new = keep_missing(new, old);
        touched.extend(new.iter().map(|held| reference(&file, held)));
        for object in &touched {
            if let Some(places) = self.given.get_mut(object) {
                places.retain(|((path, _), ..)| *path != file);
            }
        }
        for held in &new {
            let place = (file.clone(), held.start + held.found.line() - 1);
            let places = self.given.entry(reference(&file, held)).or_default();
            if let Err(at) = places.binary_search_by(|(other, ..)| other.cmp(&place)) {
                places.reserve_exact(1);
                places.insert(at, (place, held.digest, held.found.clone()));
            }
        }
        if !new.is_empty() {
            self.files.insert(file.clone(), new);
        }
        touched
            .into_iter()
            .flat_map(|object| self.say(object))
            .collect()
    }

    /// A file is there and cannot be read at all; what it held stays in force.
    pub fn unreadable(&mut self, file: &str, reason: &str) -> Vec<Delta> {
        let origin = Origin {
            file: file.into(),
            line: 0,
        };
        let broken = Broken {
            origin,
            field: String::new(),
            message: reason.to_owned(),
            selector: None,
        };
        vec![Delta::Bad(ObjectRef::new("Document", "", file), broken)]
    }

    /// The files that hold something.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|file| &**file)
    }

    /// Says what has changed about one object and about those who give it again.
    fn say(&mut self, object: ObjectRef) -> Vec<Delta> {
        let places = self.given.get(&object).filter(|places| !places.is_empty());
        let Some((place, digest, found)) = places.and_then(|places| places.first()) else {
            self.given.remove(&object);
            let mut deltas = self.say_again(&object, BTreeMap::new());
            if self.said.remove(&object).is_some() {
                deltas.push(Delta::Removed(object));
            }
            return deltas;
        };
        let (place, digest, found) = (place.clone(), *digest, found.clone());
        let others = places
            .into_iter()
            .flat_map(|places| places.iter().skip(1).map(|(place, ..)| place));
        let others: BTreeMap<Place, Place> =
            others.map(|other| (other.clone(), place.clone())).collect();
        let said = Said {
            place: place.clone(),
            digest,
            bad: matches!(found, Found::Bad { .. }),
        };
        let mut deltas = self.say_again(&object, others);
        if self.said.get(&object) != Some(&said) {
            self.said.insert(object.clone(), said);
            deltas.push(delta(object, &place, found));
        }
        deltas
    }

    /// Names the places that give an object again, and takes back what no longer holds.
    fn say_again(&mut self, object: &ObjectRef, now: BTreeMap<Place, Place>) -> Vec<Delta> {
        let before = match now.is_empty() {
            true => self.again.remove(object),
            false => self.again.insert(object.clone(), now.clone()),
        };
        let before = before.unwrap_or_default();
        let gone = before.keys().filter(|place| !now.contains_key(*place));
        let mut deltas: Vec<_> = gone
            .map(|place| Delta::Removed(duplicate(object, place)))
            .collect();
        for (place, first) in now
            .into_iter()
            .filter(|(place, first)| before.get(place) != Some(first))
        {
            let message = format!(
                "{object} is already given at {}:{}; this one is ignored",
                first.0, first.1
            );
            let name = duplicate(object, &place);
            let origin = Origin {
                file: place.0,
                line: place.1,
            };
            let broken = Broken {
                origin,
                field: "metadata.name".to_owned(),
                message,
                selector: None,
            };
            deltas.push(Delta::Bad(name, broken));
        }
        deltas
    }
}

fn duplicate(object: &ObjectRef, place: &Place) -> ObjectRef {
    ObjectRef::new(
        "Document",
        "",
        &format!("{object} again at {}:{}", place.0, place.1),
    )
}

/// The object's name, or its place when it has none.
fn reference(file: &str, held: &Held) -> ObjectRef {
    let place = || format!("{file}:{}", held.start + held.found.line() - 1);
    held.found
        .reference()
        .unwrap_or_else(|| ObjectRef::new("Document", "", &place()))
}

/// Reads the documents of a file. A document that has not changed is not read again.
fn read(text: &str, old: &[Held]) -> Vec<Held> {
    let mut known: HashMap<u64, Vec<&Held>> = HashMap::new();
    for held in old {
        known.entry(held.digest).or_default().push(held);
    }
    let mut new = Vec::new();
    for document in document::split(text) {
        let digest = document.digest();
        let start = document.line;
        let mut push = |found| {
            new.push(Held {
                digest,
                start,
                found,
            })
        };
        match known.get(&digest) {
            // The same document twice in one file is rare; then it is read again.
            Some(held) if held.iter().all(|one| one.start == held[0].start) => {
                held.iter().for_each(|held| push(held.found.clone()));
            }
            _ => document::read(document.text).into_iter().for_each(push),
        }
    }
    new
}

/// Where the syntax of a document is broken, any object of the file may be meant: those that are missing stay.
fn keep_missing(mut new: Vec<Held>, old: Vec<Held>) -> Vec<Held> {
    if !new
        .iter()
        .any(|held| matches!(held.found, Found::Bad { syntax: true, .. }))
    {
        return new;
    }
    let present: BTreeSet<_> = new
        .iter()
        .filter_map(|held| held.found.reference())
        .collect();
    let missing = |held: &Held| {
        held.found
            .reference()
            .is_some_and(|object| !present.contains(&object))
    };
    new.extend(old.into_iter().filter(missing));
    new
}

fn delta(object: ObjectRef, place: &Place, found: Found) -> Delta {
    let origin = Origin {
        file: place.0.clone(),
        line: place.1,
    };
    match found {
        Found::Object {
            object, unknown, ..
        } => Delta::Applied {
            object,
            origin,
            unknown,
        },
        Found::Bad { broken, .. } => Delta::Bad(object, Broken { origin, ..broken }),
    }
}

#[cfg(test)]
mod tests;
