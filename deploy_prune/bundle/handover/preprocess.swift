// From a picture's bytes to what $artifact takes, and back to the picture. Needs Foundation and nothing else.
import Foundation

let channels = $channels, height = $height, width = $width, pixels = height * width
let mean: [Float] = [$mean], std: [Float] = [$std]

/// How a picture is brought to the network's size. cut: it covers the size, and what is too much is cut off evenly;
/// letterbox: all of it fits in, and pad is evenly around it; stretch: height and width are scaled on their own.
enum Fit { case cut, letterbox, stretch }

let fit = Fit.$fit
let pad: UInt8 = $pad

/// Bytes [height, width, channels], $colour. A photo must be upright: CGImage leaves the EXIF orientation aside; lay
/// transparency on white.
struct Picture { let height: Int, width: Int, bytes: [UInt8] }

/// The part of a picture that is used, and where it lies in the network's input.
struct Placement {
  let left: Double, top: Double, right: Double, bottom: Double
  let toLeft: Int, toTop: Int, toRight: Int, toBottom: Int
}

func placement(_ ofHeight: Int, _ ofWidth: Int) -> Placement {
  let high = Double(ofHeight), wide = Double(ofWidth)
  if fit == .stretch {
    return Placement(
      left: 0, top: 0, right: wide, bottom: high, toLeft: 0, toTop: 0, toRight: width, toBottom: height)
  }
  if fit == .cut {
    let usedWide = min(wide, high * Double(width) / Double(height))
    let usedHigh = min(high, wide * Double(height) / Double(width))
    let left = (wide - usedWide) / 2, top = (high - usedHigh) / 2
    return Placement(
      left: left, top: top, right: left + usedWide, bottom: top + usedHigh,
      toLeft: 0, toTop: 0, toRight: width, toBottom: height)
  }
  let scale = min(Double(width) / wide, Double(height) / high)
  let innerWide = max(1, Int((wide * scale).rounded(.toNearestOrEven)))
  let innerHigh = max(1, Int((high * scale).rounded(.toNearestOrEven)))
  let left = (width - innerWide) / 2, top = (height - innerHigh) / 2
  return Placement(
    left: 0, top: 0, right: wide, bottom: high,
    toLeft: left, toTop: top, toRight: left + innerWide, toBottom: top + innerHigh)
}

/// From a place in a picture, in pixels, to one in the network's input: times scale, plus shift.
struct Mapping { let scaleX: Double, scaleY: Double, shiftX: Double, shiftY: Double }

func mapping(_ ofHeight: Int, _ ofWidth: Int) -> Mapping {
  let p = placement(ofHeight, ofWidth)
  let scaleX = Double(p.toRight - p.toLeft) / (p.right - p.left)
  let scaleY = Double(p.toBottom - p.toTop) / (p.bottom - p.top)
  return Mapping(
    scaleX: scaleX, scaleY: scaleY,
    shiftX: Double(p.toLeft) - p.left * scaleX, shiftY: Double(p.toTop) - p.top * scaleY)
}

/// What a scaled pixel is made of: the pixels from first on, with these weights, which add up to 1 << bits.
let bits = 22
struct Taps { let first: Int, weights: [Int] }

/// Of each of count pixels that the stretch from..to of size pixels is scaled to. Linear between centres; where it gets
/// smaller, over as many pixels as go into one. As Pillow does it, to the last bit.
func taps(_ size: Int, _ from: Float, _ to: Float, _ count: Int) -> [Taps] {
  let scale = Double(to - from) / Double(count), reach = max(scale, 1)
  return (0..<count).map { i in
    let centre = Double(from) + (Double(i) + 0.5) * scale
    let first = max(0, Int(centre - reach + 0.5))
    let end = min(size, Int(centre + reach + 0.5))
    let shares = (first..<end).map { x in max(0, 1 - abs((Double(x) - centre + 0.5) * (1 / reach))) }
    let sum = shares.reduce(0, +)
    return Taps(first: first, weights: shares.map { share in Int(0.5 + share / sum * Double(1 << bits)) })
  }
}

/// The sum of the bytes that these taps take, step bytes apart, the first at start.
func weighed(_ bytes: [UInt8], _ start: Int, _ step: Int, _ taps: Taps) -> UInt8 {
  var sum = 1 << (bits - 1)
  for k in taps.weights.indices {
    sum += Int(bytes[start + (taps.first + k) * step]) * taps.weights[k]
  }
  return UInt8(max(0, min(sum >> bits, 255)))
}

/// A picture in the network's size: bytes [height, width, channels].
func fitted(_ picture: Picture) -> [UInt8] {
  let p = placement(picture.height, picture.width)
  let wide = p.toRight - p.toLeft, high = p.toBottom - p.toTop
  let across = taps(picture.width, Float(p.left), Float(p.right), wide)
  let down = taps(picture.height, Float(p.top), Float(p.bottom), high)
  var rows = [UInt8](repeating: 0, count: picture.height * wide * channels)
  var found = [UInt8](repeating: pad, count: pixels * channels)
  for y in 0..<picture.height {
    for x in 0..<wide {
      for c in 0..<channels {
        rows[(y * wide + x) * channels + c] =
          weighed(picture.bytes, y * picture.width * channels + c, channels, across[x])
      }
    }
  }
  for y in 0..<high {
    for x in 0..<wide {
      for c in 0..<channels {
        found[((p.toTop + y) * width + p.toLeft + x) * channels + c] =
          weighed(rows, x * channels + c, wide * channels, down[y])
      }
    }
  }
  return found
}

/// A picture as the network takes it: [channels, height, width].
func preprocess(_ picture: Picture) -> [Float] {
  let bytes = fitted(picture)
  var x = [Float](repeating: 0, count: channels * pixels)
  for c in 0..<channels {
    for i in 0..<pixels {
      x[c * pixels + i] = (Float(bytes[i * channels + c]) / 255 - mean[c]) / std[c]
    }
  }
  return x
}
