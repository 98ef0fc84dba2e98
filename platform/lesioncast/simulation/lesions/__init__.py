"""Place the lesions of a simulated subject: where they arise, their shapes, and what they show."""
