//! The versioned bytes of a record, for stores that keep each record as one value.
