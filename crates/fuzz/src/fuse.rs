//! Requests of FUSE, made of decisions: every kind, with fields that make sense or do not.

use crate::choices::Choices;

const HEADER: usize = 40;

/// A part of a request's body.
#[derive(Clone, Copy)]
enum Field {
    /// Flags, modes, and numbers of four bytes.
    U32,
    /// Offsets, counts and numbers of eight bytes.
    U64,
    /// An open file.
    Handle,
    /// An inode.
    Node,
    /// The name of something, with its end.
    Name,
    /// The name of an extended attribute, with its end.
    Attribute,
    /// So many bytes of nothing.
    Padding(usize),
    /// How long what follows is, in four bytes.
    Size,
    /// Any bytes.
    Data,
}

/// The numbers of `enum fuse_opcode` (include/uapi/linux/fuse.h), with the layout of each one's body.
pub const INIT: u8 = 26;
const BODIES: &[(u32, &[Field])] = {
    use Field::{Attribute, Data, Handle, Name, Node, Padding, Size, U32, U64};
    &[
        (1, &[Name]),
        (2, &[U64]),
        (3, &[U32, U32, Handle]),
        (
            4,
            &[
                U32, U32, Handle, U64, U64, U64, U64, U64, U32, U32, U32, U32, U32, U32, U32, U32,
            ],
        ),
        (5, &[]),
        (6, &[Name, Name]),
        (8, &[U32, U32, U32, U32, Name]),
        (9, &[U32, U32, Name]),
        (10, &[Name]),
        (11, &[Name]),
        (12, &[Node, Name, Name]),
        (13, &[Node, Name]),
        (14, &[U32, U32]),
        (15, &[Handle, U64, Size, U32, U64, U32, U32]),
        (16, &[Handle, U64, Size, U32, U64, U32, U32, Data]),
        (17, &[]),
        (18, &[Handle, U32, U32, U64]),
        (20, &[Handle, U32, U32]),
        (21, &[Size, U32, Attribute, Data]),
        (21, &[Size, U32, U32, U32, Attribute, Data]),
        (22, &[Size, U32, Attribute]),
        (23, &[Size, U32]),
        (24, &[Attribute]),
        (25, &[Handle, U32, U32, U64]),
        (26, &[U32, U32, U32, U32, U32, Padding(44)]),
        (27, &[U32, U32]),
        (28, &[Handle, U64, Size, U32, U64, U32, U32]),
        (29, &[Handle, U32, U32, U64]),
        (30, &[Handle, U32, U32]),
        (34, &[U32, U32]),
        (35, &[U32, U32, U32, U32, Name]),
        (38, &[]),
        (42, &[U32, U32, Node, U64, Node, U64, Node, U64]),
        (43, &[Handle, U64, U64, U32, U32]),
        (44, &[Handle, U64, Size, U32, U64, U32, U32]),
        (45, &[Node, U32, U32, Name, Name]),
        (46, &[Handle, U64, U32, U32]),
        (47, &[Handle, U64, Node, Handle, U64, U64, U64]),
        (50, &[U64]),
        (51, &[U32, U32, U32, U32, Name]),
    ]
};

/// A request: of the kind that `kind` stands for, with a body of its layout, or with any.
pub fn any_request(kind: u8, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let opcode = if kind == INIT {
        // What the kernel of today asks for, and sometimes another.
        for field in [7_u32, 38, 1 << 17] {
            body.extend(field.to_le_bytes());
        }
        let flags = if choices.once_in(4) {
            choices.u32()
        } else {
            u32::MAX
        };
        body.extend(flags.to_le_bytes());
        body.extend([0; 48]);
        u32::from(INIT)
    } else if kind >= 0xF0 {
        let length = usize::from(choices.byte());
        body.extend(choices.bytes(length));
        choices.byte().into()
    } else {
        let (opcode, fields) = BODIES[usize::from(kind) % BODIES.len()];
        for field in fields {
            put(&mut body, *field, choices);
        }
        opcode
    };
    let mut extension = 0;
    if choices.once_in(16) {
        // Groups of the caller or a security context, or neither.
        let length = choices.below(24);
        let bytes = choices.bytes(length);
        body.extend(bytes);
        extension = choices.pick(&[bytes.len() as u16 / 8, 1, u16::MAX]);
    }
    let whole = HEADER + body.len();
    let mut request = Vec::with_capacity(whole);
    let length = match choices.byte() {
        0 => choices.u32(),
        1 => HEADER as u32,
        2 => whole as u32 + 1,
        _ => whole as u32,
    };
    request.extend(length.to_le_bytes());
    request.extend(opcode.to_le_bytes());
    request.extend(u64::from(kind).to_le_bytes());
    put(&mut request, Field::Node, choices);
    let owner = choices.pick(&[0_u32, 0, 1000, 1000, 65534, u32::MAX]);
    request.extend(owner.to_le_bytes());
    request.extend(owner.to_le_bytes());
    request.extend(1_u32.to_le_bytes());
    request.extend(extension.to_le_bytes());
    request.extend([0; 2]);
    request.append(&mut body);
    request.truncate(usize::from(u16::MAX) / 2 - 0x1000);
    request
}

fn put(out: &mut Vec<u8>, field: Field, choices: &mut Choices<'_>) {
    const NAMES: &[&[u8]] = &[
        b"file",
        b"dir",
        b"inner",
        b"other",
        b"link",
        b"up",
        b"whole",
        b"new",
        b"a",
        b".",
        b"..",
        b"",
        b"../secret",
        b"dir/inner",
        b"/etc/passwd",
        b"up/secret",
        b"secret",
        b"served",
    ];
    const ATTRIBUTES: &[&[u8]] = &[
        b"user.a",
        b"user.",
        b"",
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.overlay.opaque",
    ];
    match field {
        Field::U32 => {
            const NEAR: &[u32] = &[
                0,
                0,
                1,
                2,
                3,
                0o100_644,
                0o40_755,
                0o10_644,
                0o20_666,
                0o140_777,
                0o120_777,
                0o6755,
                0x200,
                0x241,
                0x8000,
                0x10_0000,
                0x40_0000,
                u32::MAX,
            ];
            let value = match choices.byte() {
                byte @ 0..=0xDF => NEAR[usize::from(byte) % NEAR.len()],
                _ => choices.u32(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::U64 => out.extend(choices.number().to_le_bytes()),
        Field::Handle => {
            let value = match choices.byte() {
                byte @ 0..=0xF7 => u64::from(byte % 8),
                _ => choices.u64(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Node => {
            let value = match choices.byte() {
                byte @ 0..=0xF7 => u64::from(byte % 12),
                _ => choices.u64(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Name | Field::Attribute => {
            let known = if matches!(field, Field::Name) {
                NAMES
            } else {
                ATTRIBUTES
            };
            match choices.byte() {
                byte @ 0..=0xDF => out.extend(known[usize::from(byte) % known.len()]),
                0xE0..=0xE7 => out.extend([b'n'; 300]),
                _ => {
                    let length = choices.below(20);
                    out.extend(choices.bytes(length));
                }
            }
            if !choices.once_in(32) {
                out.push(0);
            }
        }
        Field::Padding(count) => out.extend(vec![0; count]),
        Field::Size => {
            let value = match choices.byte() {
                byte @ 0..=0xBF => u32::from(byte) * 8,
                0xC0..=0xDF => 4096,
                0xE0..=0xEF => 1 << 20,
                _ => choices.u32(),
            };
            out.extend(value.to_le_bytes());
        }
        Field::Data => {
            let length = usize::from(choices.byte());
            let known = choices.bytes(length.min(16));
            out.extend(known);
            out.extend(vec![b'd'; length - known.len()]);
        }
    }
}
