//! Checks the rules at every address of the program and of the C library against those of another
//! reader of the same tables.

extern crate std;

use gimli::{BaseAddresses, EhFrame, NativeEndian, UnwindContext, UnwindSection as _};
use std::println;
use std::slice;

use super::rules::{End, Rule, Rules, Short};
use super::tables::{Bytes, Tables};
use super::{capture, images};
use crate::arch::frames::{CODE, FRAME, REGISTERS, STACK};

type Theirs = gimli::RegisterRule<usize>;

/// Compares an expression of ours, a block that begins with its length, with one of theirs.
fn is_same_expression(ours: usize, theirs: gimli::UnwindExpression<usize>, section: usize) -> bool {
    let mut block = Bytes { at: ours, end: ours + 10 };
    let len = block.unsigned().unwrap();
    (block.at, len) == (section + theirs.offset, theirs.length)
}

/// Compares the rules at an address. `section` is the address of their section, `header` that of
/// our tables.
fn compare(ours: &Rules, theirs: &gimli::UnwindTableRow<usize>, section: usize, header: usize) {
    let at = |distance: i32| header.wrapping_add(distance as usize);
    match (ours.end, theirs.cfa()) {
        (
            End::Offset(register, offset),
            gimli::CfaRule::RegisterAndOffset { register: theirs, offset: their_offset },
        ) => {
            assert_eq!((u16::from(register), i64::from(offset)), (theirs.0, *their_offset));
        }
        (End::Expression(distance), gimli::CfaRule::Expression(theirs)) => {
            assert!(is_same_expression(at(distance), *theirs, section));
        }
        (ours, theirs) => panic!("{ours:?} instead of {theirs:?}"),
    }
    for (number, rule) in ours.registers.iter().enumerate() {
        let theirs = theirs.register(gimli::Register(number as u16));
        let is_same = match (*rule, theirs.clone()) {
            (Rule::Unspecified, None)
            | (Rule::Undefined, Some(Theirs::Undefined))
            | (Rule::Same, Some(Theirs::SameValue)) => true,
            (Rule::Offset(offset), Some(Theirs::Offset(theirs)))
            | (Rule::ValueOffset(offset), Some(Theirs::ValOffset(theirs))) => {
                i64::from(offset) == theirs
            }
            (Rule::Register(other), Some(Theirs::Register(theirs))) => u16::from(other) == theirs.0,
            (Rule::Expression(distance), Some(Theirs::Expression(theirs)))
            | (Rule::ValueExpression(distance), Some(Theirs::ValExpression(theirs))) => {
                is_same_expression(at(distance), theirs, section)
            }
            _ => false,
        };
        assert!(is_same, "register {number}: {rule:?} instead of {theirs:?}");
    }
}

/// Compares the rules of all functions of the image that `address` lies in. Returns the number of
/// functions and of sets of rules.
fn compare_all(address: usize) -> (usize, usize) {
    let tables: Tables = images::find(address).unwrap().tables.unwrap();
    let mut records = std::vec::Vec::new();
    let mut end = 0;
    for place in 0.. {
        let Some(record) = tables.record(place) else { break };
        records.push((place, record.at - 4));
        end = end.max(record.end);
    }
    // Records refer back to what they share.
    let section = tables.section();
    // SAFETY: the section lies in the image, which stays loaded.
    let bytes = unsafe {
        slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(section), end - section)
    };
    let theirs = EhFrame::new(bytes, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame(section as u64);
    let mut context = UnwindContext::new();
    let mut rows = 0;
    for (place, at) in &records {
        let entry = theirs
            .fde_from_offset(&bases, (at - section).into(), EhFrame::cie_from_offset)
            .unwrap();
        let function = tables.function(*place).unwrap();
        let code = entry.initial_address() as usize..entry.end_address() as usize;
        assert_eq!(function.code, code);
        assert_eq!(function.is_signal_frame, entry.is_signal_trampoline());
        assert_eq!(function.return_address, usize::from(entry.cie().return_address_register().0));
        assert!(code.is_empty() || tables.search(code.start) == Some(*place));
        let mut table = entry.rows(&theirs, &bases, &mut context).unwrap();
        while let Some(row) = table.next_row().unwrap() {
            let row_code = row.start_address() as usize..row.end_address() as usize;
            if row_code.is_empty() || row_code.start >= code.end {
                continue;
            }
            for address in [row_code.start, row_code.end.min(code.end) - 1] {
                let mut ours = Rules::new();
                assert_eq!(ours.find(address, &tables).unwrap().0, *place);
                compare(&ours, row, section, tables.header);
                if let Some(short) = Short::new(&ours, function.return_address)
                    && let Some(word) = short.pack()
                {
                    assert_eq!(Short::unpack(word), short);
                }
            }
            rows += 1;
        }
    }
    (records.len(), rows)
}

#[test]
fn rules_agree_with_another_reader() {
    let c_library = libc::malloc as *const () as usize;
    let own = compare_all as *const () as usize;
    for (name, address) in [("C library", c_library), ("program", own)] {
        let (functions, rows) = compare_all(address);
        println!("{name}: {functions} functions, {rows} sets of rules");
        assert!(functions > 100 && rows > functions);
    }
}

#[test]
fn short_rules_survive_packing() {
    let distances = [0, 8, -8, 16, 800, -(1 << 22), (1 << 22) - 8];
    for from_frame_pointer in [false, true] {
        for end in distances {
            for code in distances {
                for frame_pointer in distances.map(Some).into_iter().chain([None]) {
                    let short = Short::Caller { from_frame_pointer, end, code, frame_pointer };
                    assert_eq!(Short::unpack(short.pack().unwrap()), short);
                }
            }
        }
    }
    assert_eq!(Short::unpack(Short::Outermost.pack().unwrap()), Short::Outermost);
    for end in [4, 1 << 22, -(1 << 22) - 8] {
        let short = Short::Caller { from_frame_pointer: false, end, code: -8, frame_pointer: None };
        assert_eq!(short.pack(), None);
    }
}

#[test]
fn only_rules_on_the_two_pointers_have_a_short_form() {
    let mut plain =
        Rules { end: End::Offset(STACK as u8, 16), registers: [Rule::Unspecified; REGISTERS] };
    plain.registers[CODE] = Rule::Offset(-8);
    assert!(Short::new(&plain, CODE).is_some());
    let change = |change: &dyn Fn(&mut Rules)| {
        let mut rules = plain.clone();
        change(&mut rules);
        Short::new(&rules, CODE)
    };
    assert_eq!(change(&|rules| rules.end = End::Offset(0, 16)), None);
    assert_eq!(change(&|rules| rules.end = End::Expression(0)), None);
    assert_eq!(change(&|rules| rules.registers[STACK] = Rule::Offset(0)), None);
    assert_eq!(change(&|rules| rules.registers[FRAME] = Rule::Register(1)), None);
    assert_eq!(change(&|rules| rules.registers[CODE] = Rule::Same), None);
    assert_eq!(change(&|rules| rules.registers[CODE] = Rule::Undefined), Some(Short::Outermost));
}

#[test]
fn numbers_of_variable_length_are_read() {
    let bytes = [0xe5u8, 0x8e, 0x26, 0x02, 0x7f, 0x80, 0x7f, 0x80, 0x01, 0x80];
    let start = bytes.as_ptr().expose_provenance();
    let mut from = Bytes { at: start, end: start + bytes.len() };
    assert_eq!(from.unsigned(), Some(624_485));
    assert_eq!(from.signed(), Some(2));
    assert_eq!(from.signed(), Some(-1));
    assert_eq!(from.signed(), Some(-128));
    assert_eq!(from.unsigned(), Some(128));
    // The last number has no end.
    assert_eq!(from.unsigned(), None);
}

#[test]
fn stack_of_a_test_is_captured() {
    let mut frames = [0; 64];
    let count = capture(&mut frames);
    assert!(count > 3 && frames[..count].iter().all(|frame| *frame != 0));
    assert!(frames[count..].iter().all(|frame| *frame == 0));
    let mut fewer = [0; 2];
    assert_eq!(capture(&mut fewer), 2);
    assert_eq!(capture(&mut []), 0);
}
