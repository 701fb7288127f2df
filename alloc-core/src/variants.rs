//! Enums with a list of their variants.

/// Declares an enum without fields, and its constant `ALL`: the variants in the order of their
/// numbers, so that `ALL[variant as usize]` is `variant`. If `=>` and a name follow each variant,
/// also declares the method `name`.
macro_rules! enumerated {
    (
        $(#[$of_enum:meta])*
        $visibility:vis enum $enum:ident {
            $($(#[$of_variant:meta])* $variant:ident => $name:literal,)*
        }
    ) => {
        enumerated! {
            $(#[$of_enum])*
            $visibility enum $enum {
                $($(#[$of_variant])* $variant,)*
            }
        }

        impl $enum {
            /// Returns the name of the variant.
            #[allow(dead_code, reason = "only some features use it")]
            $visibility fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)*
                }
            }
        }
    };
    (
        $(#[$of_enum:meta])*
        $visibility:vis enum $enum:ident {
            $($(#[$of_variant:meta])* $variant:ident,)*
        }
    ) => {
        $(#[$of_enum])*
        $visibility enum $enum {
            $($(#[$of_variant])* $variant,)*
        }

        impl $enum {
            /// All variants, in the order of their declaration.
            #[allow(dead_code, reason = "only some features use it")]
            $visibility const ALL: [$enum; [$($enum::$variant),*].len()] = [$($enum::$variant),*];
        }
    };
}

pub(crate) use enumerated;

#[cfg(test)]
mod tests {
    enumerated! {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Side {
            /// Has a comment.
            Left => "left",
            Right => "right",
        }
    }

    #[test]
    fn variants_are_listed_by_number() {
        assert_eq!(Side::ALL, [Side::Left, Side::Right]);
        assert_eq!(Side::ALL.map(|side| side as usize), [0, 1]);
        assert_eq!(Side::ALL.map(Side::name), ["left", "right"]);
    }
}
