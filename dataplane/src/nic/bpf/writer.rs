//! BPF instructions with names for the places that jumps lead to, which need no compiler. Registers 0 to 5 are lost by a call; 8 is
//! for the frame's end, 10 the stack.

use super::{Instruction, instruction};

/// Instructions, and where their jumps lead.
pub(crate) struct Writer<L> {
    code: Vec<Instruction>,
    places: Vec<(L, usize)>,
    jumps: Vec<(usize, L)>,
}

// Loads of 1, 2, 4 and 8 bytes (BPF_LDX | BPF_MEM).
pub(crate) const LOAD_1: u8 = 0x71;
pub(crate) const LOAD_2: u8 = 0x69;
pub(crate) const LOAD_4: u8 = 0x61;
pub(crate) const LOAD_8: u8 = 0x79;
// Jumps (BPF_JMP): if equal to, not equal to, with a bit of, above an immediate; if above a register; below an immediate.
pub(crate) const IF_EQ: u8 = 0x15;
pub(crate) const IF_NE: u8 = 0x55;
pub(crate) const IF_BITS: u8 = 0x45;
pub(crate) const IF_ABOVE: u8 = 0x25;
pub(crate) const IF_BELOW: u8 = 0xa5;
/// Of a register's value, above that of another.
const IF_ABOVE_REGISTER: u8 = 0x2d;

impl<L: Copy + PartialEq> Writer<L> {
    pub(crate) const fn new() -> Self {
        Self {
            code: Vec::new(),
            places: Vec::new(),
            jumps: Vec::new(),
        }
    }

    pub(crate) fn put(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        self.code.push(instruction(opcode, dst, src, offset, immediate));
    }

    pub(crate) fn place(&mut self, label: L) {
        self.places.push((label, self.code.len()));
    }

    pub(crate) fn jump(&mut self, opcode: u8, register: u8, immediate: i32, to: L) {
        self.jumps.push((self.code.len(), to));
        self.put(opcode, register, 0, 0, immediate);
    }

    pub(crate) fn go(&mut self, to: L) {
        self.jump(0x05, 0, 0, to);
    }

    pub(crate) fn load(&mut self, opcode: u8, dst: u8, src: u8, offset: i16) {
        self.put(opcode, dst, src, offset, 0);
    }

    /// To a register what is on the stack, 8 bytes.
    pub(crate) fn recall(&mut self, register: u8, offset: i16) {
        self.load(LOAD_8, register, 10, offset);
    }

    /// If one register is above another.
    pub(crate) fn jump_above(&mut self, one: u8, other: u8, to: L) {
        self.jumps.push((self.code.len(), to));
        self.put(IF_ABOVE_REGISTER, one, other, 0, 0);
    }

    /// Leads elsewhere unless the frame has so many bytes from the one that `register` points at.
    pub(crate) fn need(&mut self, register: u8, bytes: i32, or: L) {
        self.put(0xbf, 3, register, 0, 0);
        self.put(0x07, 3, 0, 0, bytes);
        self.jump_above(3, 8, or);
    }

    /// Copies words of the frame, from `register` and `offset`, to the stack.
    pub(crate) fn copy(&mut self, register: u8, offset: i16, to: i16, words: i16) {
        for word in 0..words {
            self.load(LOAD_4, 4, register, offset + 4 * word);
            self.put(0x63, 10, 4, to + 4 * word, 0);
        }
    }

    /// Copies words from one place on the stack to another.
    pub(crate) fn move_words(&mut self, from: i16, to: i16, words: i16) {
        for word in 0..words {
            self.load(LOAD_4, 5, 10, from + 4 * word);
            self.put(0x63, 10, 5, to + 4 * word, 0);
        }
    }

    /// On the stack: the first 96 bits of a mapped address.
    pub(crate) fn map_v4(&mut self, to: i16) {
        self.put(0x62, 10, 0, to, 0);
        self.put(0x62, 10, 0, to + 4, 0);
        // The bytes 0, 0, 255, 255.
        self.put(0x62, 10, 0, to + 8, -65_536);
    }

    /// To a register the address of the value of an array that has one (BPF_PSEUDO_MAP_VALUE).
    pub(crate) fn address(&mut self, register: u8, array: i32) {
        self.put(0x18, register, 2, 0, array);
        self.put(0x00, 0, 0, 0, 0);
    }

    /// To r1 a map (BPF_PSEUDO_MAP_FD): what helpers are told it by.
    pub(crate) fn map(&mut self, map: i32) {
        self.put(0x18, 1, 1, 0, map);
        self.put(0x00, 0, 0, 0, 0);
    }

    /// Calls a helper, by its number in linux/bpf.h.
    pub(crate) fn call(&mut self, helper: i32) {
        self.put(0x85, 0, 0, 0, helper);
    }

    /// r0: where the value of a key on the stack is, or null.
    pub(crate) fn look_up(&mut self, map: i32, key: i16) {
        self.map(map);
        self.put(0xbf, 2, 10, 0, 0);
        self.put(0x07, 2, 0, 0, i32::from(key));
        self.call(1);
    }

    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.places.iter().find(|(l, _)| *l == label);
            // Every label has a place, and the program far fewer than 32,768 instructions: the kernel refuses another one.
            let to = place.map_or(self.code.len(), |(_, to)| *to);
            self.code[at].offset = (to as isize - at as isize - 1) as i16;
        }
        self.code
    }
}
