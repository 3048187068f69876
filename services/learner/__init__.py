"""The learner room: takes batches, makes optimiser steps on the TB objective, publishes weights."""
