//! Fields of a few bits in 32-bit words: the first field in the lowest bits, each next one above it, across the ends of
//! words. For 2, 4 and 8 bits that is one word after another; for 3 bits 32 fields fill three words.

/// Fields that fill whole words whatever their width.
pub(super) const UNIT: usize = 32;

/// Words that `fields` fields take.
pub(super) fn words(fields: usize, bits: u32) -> usize {
    (fields * bits as usize).div_ceil(32)
}

/// Packs up to 32 fields into as many words as there are bits in a field.
pub(super) fn pack(fields: &[u8], bits: u32, words: &mut [u32]) {
    words.fill(0);
    for (i, field) in fields.iter().enumerate() {
        let bit = i * bits as usize;
        let (word, shift) = (bit / 32, bit as u32 % 32);
        words[word] |= u32::from(*field) << shift;
        if shift + bits > 32 {
            words[word + 1] |= u32::from(*field) >> (32 - shift);
        }
    }
}

/// Unpacks 32 fields.
pub(super) fn unpack(words: &[u32; 8], bits: u32) -> [u8; UNIT] {
    // The width as a constant turns the loop into shifts.
    match bits {
        2 => unpack_width::<2>(words),
        3 => unpack_width::<3>(words),
        4 => unpack_width::<4>(words),
        8 => unpack_width::<8>(words),
        _ => unreachable!("the configuration's reader refuses {bits} bits"),
    }
}

fn unpack_width<const BITS: usize>(words: &[u32; 8]) -> [u8; UNIT] {
    std::array::from_fn(|i| {
        let (word, shift) = (i * BITS / 32, i * BITS % 32);
        let mut field = words[word] >> shift;
        if shift + BITS > 32 {
            field |= words[word + 1] << (32 - shift);
        }
        (field & ((1 << BITS) - 1)) as u8
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(fields in prop::array::uniform32(any::<u8>()), width in 0usize..4) {
            let bits = [2, 3, 4, 8][width];
            let fields = fields.map(|field| field & ((1u16 << bits) - 1) as u8);
            let mut words = [0; 8];
            pack(&fields, bits, &mut words[..bits as usize]);
            prop_assert_eq!(unpack(&words, bits), fields);
        }
    }

    #[test]
    fn three_bits_cross_words() {
        let mut fields = [0; UNIT];
        fields[10] = 0b101;
        fields[21] = 0b110;
        let mut words = [0; 3];
        pack(&fields, 3, &mut words);
        // The low two bits of field 10 end the first word, the low bit of field 21 the second.
        assert_eq!(words, [0b01 << 30, 0b1, 0b11]);
    }
}
