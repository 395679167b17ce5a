// A SEG as dcmjs reads it, the library of OHIF: what it says on standard output, its voxels (one byte each) in the file OUT.
const fs = require('fs');
const dcmjs = require('dcmjs');

const [file, out] = process.argv.slice(2);
const content = fs.readFileSync(file);
const read = dcmjs.data.DicomMessage.readFile(content.buffer.slice(content.byteOffset, content.byteOffset + content.length));
const seg = dcmjs.data.DicomMetaDictionary.naturalizeDataset(read.dict);
const list = (found) => (Array.isArray(found) ? found : [found]);
const [stored] = list(seg.PixelData);
const length = seg.Rows * seg.Columns * Number(seg.NumberOfFrames || 1);
const voxels = (seg.BitsAllocated === 1 ? dcmjs.data.BitArray.unpack(stored).map((bit) => bit && 1) : new Uint8Array(stored)).slice(0, length); // its ones are 255
fs.writeFileSync(out, Buffer.from(voxels));
const frames = list(seg.PerFrameFunctionalGroupsSequence).map((frame) => ({
  position: list(frame.PlanePositionSequence)[0].ImagePositionPatient.map(Number),
  segment: frame.SegmentIdentificationSequence ? list(frame.SegmentIdentificationSequence)[0].ReferencedSegmentNumber : null,
}));
const segments = Object.fromEntries(list(seg.SegmentSequence).map((segment) => [segment.SegmentNumber, segment.SegmentLabel]));
const series = list(seg.ReferencedSeriesSequence)[0].SeriesInstanceUID;
process.stdout.write(JSON.stringify({ rows: seg.Rows, columns: seg.Columns, largest: seg.MaximumFractionalValue, series, segments, frames }));
