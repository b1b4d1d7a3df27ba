// What the outputs of $artifact say: a class for each pixel.
import Foundation

let numClasses = $map_classes, mapHeight = $map_height, mapWidth = $map_width
let unseen: UInt8 = $unseen

/// A place between two of a map, each with its share.
struct Between { let first: Int, second: Int, firstShare: Float, secondShare: Float }

/// Of a pixel's centre, of large, on a map with small places; beyond the outermost centres it is the outermost.
func between(_ pixel: Int, _ small: Int, _ large: Int) -> Between {
  let at = max(0, min((Double(pixel) + 0.5) * Double(small) / Double(large) - 0.5, Double(small - 1)))
  let first = Int(at)
  return Between(
    first: first, second: min(first + 1, small - 1),
    firstShare: Float(1 - (at - Double(first))), secondShare: Float(at - Double(first)))
}

/// Of each pixel of the network's input the class with the highest logit.
func classesOfInput(_ outputs: [[Float]]) -> [UInt8] {
  let map = outputs[0]  // [numClasses, mapHeight, mapWidth]
  var found = [UInt8](repeating: 0, count: pixels)
  for y in 0..<height {
    let down = between(y, mapHeight, height)
    for x in 0..<width {
      let across = between(x, mapWidth, width)
      var highest: Float = 0
      for c in 0..<numClasses {
        let above = (c * mapHeight + down.first) * mapWidth
        let below = (c * mapHeight + down.second) * mapWidth
        let left = down.firstShare * map[above + across.first] + down.secondShare * map[below + across.first]
        let right = down.firstShare * map[above + across.second] + down.secondShare * map[below + across.second]
        let logit = across.firstShare * left + across.secondShare * right
        if c == 0 || logit > highest {
          highest = logit
          found[y * width + x] = UInt8(c)
        }
      }
    }
  }
  return found
}

/// Of each pixel of a picture its class's place in labels.json, from 0 on; unseen where the network doesn't see the
/// pixel.
func classes(_ outputs: [[Float]], _ ofHeight: Int, _ ofWidth: Int) -> [UInt8] {
  let ofInput = classesOfInput(outputs)
  let m = mapping(ofHeight, ofWidth)
  var found = [UInt8](repeating: unseen, count: ofHeight * ofWidth)
  for y in 0..<ofHeight {
    let inY = Int(((Double(y) + 0.5) * m.scaleY + m.shiftY).rounded(.down))
    for x in 0..<ofWidth {
      let inX = Int(((Double(x) + 0.5) * m.scaleX + m.shiftX).rounded(.down))
      let seen = inY >= 0 && inY < height && inX >= 0 && inX < width
      if seen { found[y * ofWidth + x] = ofInput[inY * width + inX] }
    }
  }
  return found
}
