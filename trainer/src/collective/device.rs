//! What a group does with numbers in a device's memory, where it knows no better: a copy here, the
//! host's operation, and a copy back.

use kernels::{Buffer, Device, DeviceMemory};

use super::{CollectiveError, ExchangeError, ProcessGroup};

/// [`ProcessGroup::all_reduce_buffer`] by way of the host.
pub(super) fn all_reduce<R: DeviceMemory>(
    group: &mut impl ProcessGroup,
    device: &Device<R>,
    buffer: &Buffer,
) -> Result<Buffer, ExchangeError> {
    let mut values = device.download(buffer)?;
    group.all_reduce(&mut values)?;
    Ok(device.upload(&values))
}

/// [`ProcessGroup::all_to_all_buffer`] by way of the host.
pub(super) fn all_to_all<R: DeviceMemory>(
    group: &mut impl ProcessGroup,
    device: &Device<R>,
    buffer: &Buffer,
    sent: &[usize],
    received: &[usize],
) -> Result<Buffer, ExchangeError> {
    let values = device.download(buffer)?;
    let mut rest = values.as_slice();
    let parts: Vec<&[f32]> = sent
        .iter()
        .map(|len| rest.split_off(..*len).unwrap_or_default())
        .collect();
    let found = group.all_to_all_v(&parts)?;
    let mut pairs = found.iter().zip(received);
    if let Some(rank) = pairs.position(|(found, wanted)| found.len() != *wanted) {
        let what = "vectors";
        return Err(CollectiveError::Malformed { rank, what }.into());
    }
    Ok(device.upload(&found.concat()))
}
