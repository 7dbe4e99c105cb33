//! Numbers as text, without `core::fmt`, which is larger than the ranker and can panic.

/// Eight digits and the end of the line.
pub fn hex(bits: u32) -> [u8; 9] {
    core::array::from_fn(|at| match (bits << (4 * (at & 7))) >> 28 {
        _ if at == 8 => b'\n',
        digit @ 0..10 => b'0' + digit as u8,
        digit => b'a' - 10 + digit as u8,
    })
}

/// The digits, and the position of the first one.
pub fn decimal(mut number: u32) -> ([u8; 10], usize) {
    let (mut digits, mut start) = ([b'0'; 10], 10);
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
        start = at;
        if number == 0 {
            break;
        }
    }
    (digits, start)
}
