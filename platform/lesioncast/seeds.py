"""What follows from a sample's seed alone, without its networks."""

WORD = 2**64  # number of values of 64 bits
# Step of a Weyl sequence: 2^64 divided by the golden ratio, rounded to an odd number.
GOLDEN = 0x9E3779B97F4A7C15
MEMBERS = 0x6D656D626572  # makes the numbers that draw a member others than those of a redraw


def load_quantile(seed: int) -> float:
    """Return the quantile in [0, 1) at which a sample's seed draws its lesion load class.

    Consecutive seeds form a Weyl sequence of the golden ratio, whose quantiles are evenly spread,
    however many there are.
    """
    return seed * GOLDEN % WORD / WORD


def member_quantile(seed: int) -> float:
    """Return the quantile in [0, 1) at which a sample's seed draws a member of the bundle.

    It looks independent of the seed's other numbers.
    """
    return mixed_bits(seed ^ MEMBERS) / WORD


def mixed_bits(number: int) -> int:
    """Return 64 bits that look independent of `number`: SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = (number + GOLDEN) % WORD
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % WORD
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % WORD
    return bits ^ bits >> 31
