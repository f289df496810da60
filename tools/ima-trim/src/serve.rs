// SPDX-License-Identifier: GPL-2.0

//! The files of the file system: those that IMA has, with every record since boot.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::io::Errno;
use tracing::error;

use crate::algorithm::Algorithm;
use crate::config;
use crate::fuse::Files;
use crate::fuse::Kind;
use crate::fuse::Node;
use crate::kernel::Kernel;
use crate::list::ListError;
use crate::list::Whole;
use crate::render::Format;
use crate::render::View;

/// The name of a file of fixed content, by which the daemon finds out whether IMA's policy measures
/// the files of this file system.
pub const PROBE: &str = "probe";

/// What it has.
pub const PROBE_TEXT: &[u8] = b"ima-trim probe 1\n";

/// How many records there are since boot.
const COUNT: &str = "runtime_measurements_count";

/// How many violations IMA has counted.
const VIOLATIONS: &str = "violations";

/// For how long a reader waits while it is found out where a list goes on.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);

/// The numbers of the nodes. Another version of the program that takes a file system over must have
/// the same: the kernel knows files by nothing else.
mod number {
    pub(super) const COUNT: u64 = 2;
    pub(super) const VIOLATIONS: u64 = 3;
    pub(super) const PROBE: u64 = 4;
    pub(super) const ASCII_LINK: u64 = 8;
    pub(super) const BINARY_LINK: u64 = 9;
    /// The files of a bank have two numbers each from here on.
    pub(super) const VIEWS: u64 = 16;
}

/// The number of a view's node.
fn view_number(view: View) -> u64 {
    let algorithm = match view.algorithm {
        Algorithm::Sha1 => 0,
        Algorithm::Sha256 => 1,
        Algorithm::Sha384 => 2,
        Algorithm::Sha512 => 3,
    };
    let format = match view.format {
        Format::Ascii => 0,
        Format::Binary => 1,
    };
    number::VIEWS + 2 * algorithm + format
}

/// The whole list as files.
#[derive(Debug)]
pub struct Served {
    /// None while it is not whole.
    whole: OnceLock<Arc<Whole<Kernel>>>,
    kernel: Kernel,
    views: Vec<View>,
    nodes: Vec<Node>,
}

impl Served {
    /// The files of this kernel's list, with permissions and owner as configured. Reads fail until
    /// the list is given.
    ///
    /// # Errors
    ///
    /// If IMA's files cannot be found, or the owner or the group does not exist.
    pub fn new(kernel: &Kernel, config: &config::List) -> io::Result<Self> {
        let views = kernel.views().map_err(io::Error::other)?;
        let uid = id("/etc/passwd", &config.owner)?;
        let gid = id("/etc/group", &config.group)?;
        let mode = config
            .permissions()
            .map_err(|text| io::Error::other(format!("mode {text:?}")))?;
        let node = |number, name: &str, kind, mode| Node {
            number,
            name: name.to_owned(),
            kind,
            mode,
            uid,
            gid,
            time: 0,
        };
        let mut nodes = vec![
            node(number::COUNT, COUNT, Kind::File, mode),
            node(number::VIOLATIONS, VIOLATIONS, Kind::File, mode),
            node(number::PROBE, PROBE, Kind::File, mode),
        ];
        for &view in &views {
            nodes.push(node(view_number(view), &view.file_name(), Kind::File, mode));
            // As IMA has them: the names without a bank lead to those of SHA-1.
            if view.algorithm == Algorithm::Sha1 {
                let (number, name) = match view.format {
                    Format::Ascii => (number::ASCII_LINK, "ascii_runtime_measurements"),
                    Format::Binary => (number::BINARY_LINK, "binary_runtime_measurements"),
                };
                nodes.push(node(number, name, Kind::Link(view.file_name()), 0o777));
            }
        }
        Ok(Self {
            whole: OnceLock::new(),
            kernel: kernel.clone(),
            views,
            nodes,
        })
    }

    /// Gives the list, once.
    pub fn give(&self, whole: &Arc<Whole<Kernel>>) {
        self.whole.get_or_init(|| Arc::clone(whole));
    }

    fn whole(&self) -> Result<&Whole<Kernel>, Errno> {
        self.whole.get().map(|whole| &**whole).ok_or(Errno::IO)
    }

    /// Asks the list. If records were removed by others, the owner of the archive may still be finding
    /// out where the list goes on.
    fn patiently<T>(
        &self,
        node: &Node,
        mut ask: impl FnMut(&Whole<Kernel>) -> Result<T, ListError>,
    ) -> Result<T, Errno> {
        let whole = self.whole()?;
        let began = Instant::now();
        loop {
            match ask(whole) {
                Err(ListError::Parted { .. })
                    if began.elapsed() < SEARCH_LIMIT && !whole.is_lost() =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                answer => return answer.map_err(|error| failed(node, &error)),
            }
        }
    }

    /// The view that a node shows.
    fn view(&self, node: &Node) -> Option<View> {
        self.views
            .iter()
            .copied()
            .find(|&view| view_number(view) == node.number)
    }

    /// The text of a file that is not a list.
    fn text(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        match node.number {
            number::COUNT => self
                .patiently(node, Whole::refresh)
                .map(|count| format!("{count}\n").into_bytes()),
            number::VIOLATIONS => self
                .kernel
                .violations()
                .map_err(|error| failed(node, &error.into())),
            _ => Ok(PROBE_TEXT.to_vec()),
        }
    }
}

impl Files for Served {
    fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn size(&self, node: &Node) -> Result<u64, Errno> {
        match self.view(node) {
            Some(view) => self.patiently(node, |whole| whole.size(view)),
            None => self.text(node).map(|text| text.len() as u64),
        }
    }

    fn read(&self, node: &Node, offset: u64, size: usize, to: &mut Vec<u8>) -> Result<(), Errno> {
        if let Some(view) = self.view(node) {
            return self.patiently(node, |whole| whole.read(view, offset, size, to));
        }
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        to.extend(self.text(node)?.iter().skip(skip).take(size));
        Ok(())
    }
}

/// What a reader gets in place of a list that cannot be given.
fn failed(node: &Node, error: &ListError) -> Errno {
    error!("{}: {error}", node.name);
    Errno::IO
}

/// The number of a user or a group: itself, or as that file says.
fn id(file: &str, name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    fs::read_to_string(file)?
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{file} has no {name:?}")))
}
