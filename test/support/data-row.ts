/** The body of a DataRow message with these values: how many there are, and each with its length. */
export function dataRow(texts: readonly (string | null)[]): Buffer {
  const parts = [Buffer.alloc(2)]
  parts[0]?.writeUInt16BE(texts.length)
  for (const text of texts) {
    const value = Buffer.from(text ?? '')
    const length = Buffer.alloc(4)
    length.writeInt32BE(text === null ? -1 : value.length)
    parts.push(length, value)
  }
  return Buffer.concat(parts)
}
