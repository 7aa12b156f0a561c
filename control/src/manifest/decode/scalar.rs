//! What a scalar without quotes is, as Kubernetes reads it (YAML 1.1).

/// What an unquoted scalar is.
pub(super) enum Plain {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text,
}

/// Finds out what `text` is.
pub(super) fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => {
            return Plain::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => {
            return Plain::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return Plain::Text;
    }
    let digits = text.replace('_', "");
    let (negative, unsigned) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let (radix, number) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &unsigned[2..]),
        [b'0', b'b' | b'B', ..] => (2, &unsigned[2..]),
        [b'0', b'o' | b'O', ..] => (8, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    if number.starts_with(|c: char| c.is_ascii_alphanumeric())
        && let Ok(value) = i64::from_str_radix(number, radix)
    {
        return Plain::Int(if negative { -value } else { value });
    }
    let float_like = unsigned
        .chars()
        .all(|c| c.is_ascii_digit() || ".eE+-".contains(c))
        && unsigned.contains(|c: char| c.is_ascii_digit());
    match digits.parse::<f64>() {
        Ok(value) if float_like && value.is_finite() => Plain::Float(value),
        _ => Plain::Text,
    }
}
