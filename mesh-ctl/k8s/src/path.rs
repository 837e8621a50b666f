//! Paths into an object as people write them: `spec.rules[0].from[1].source.ipBlocks`.

use serde_ignored::Path;

/// The path of a field that no type reads.
pub(crate) fn render(path: &Path<'_>) -> String {
    let mut out = String::new();
    write(path, &mut out);
    out
}

fn write(path: &Path<'_>, out: &mut String) {
    match path {
        Path::Root => {}
        Path::Seq { parent, index } => {
            write(parent, out);
            out.push_str(&format!("[{index}]"));
        }
        Path::Map { parent, key } => {
            write(parent, out);
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(key);
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => write(parent, out),
    }
}

/// Whether `path` lies at or below `pattern`, in which `[]` stands for any index.
pub(crate) fn below(path: &str, pattern: &str) -> bool {
    let (mut path, mut pattern) = (path, pattern);
    loop {
        match pattern.split_once("[]") {
            None => {
                return path
                    .strip_prefix(pattern)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            }
            Some((head, tail)) => {
                let Some(rest) = path
                    .strip_prefix(head)
                    .and_then(|rest| rest.strip_prefix('['))
                else {
                    return false;
                };
                let Some((_, rest)) = rest.split_once(']') else {
                    return false;
                };
                (path, pattern) = (rest, tail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn patterns_match_whole_segments() {
        let check = |path, pattern, expect| {
            assert_eq!(below(path, pattern), expect, "{path} below {pattern}")
        };
        check("spec.volumes[0].name", "spec.volumes", true);
        check("spec.volumesX", "spec.volumes", false);
        check("spec.containers[3].image", "spec.containers[].image", true);
        check(
            "spec.containers[3].imagePull",
            "spec.containers[].image",
            false,
        );
        check("spec.containers", "spec.containers[].image", false);
        check("status.conditions[0].reason", "status", true);
    }
}
