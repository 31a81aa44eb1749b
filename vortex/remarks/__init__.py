"""Why a compilation is as it is, in words: rules over ir, schedules and passes; check and cli import them."""
