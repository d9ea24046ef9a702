// Checks Kubernetes objects, a JSON list of them on stdin, by the schemas of Kubernetes and of the Prometheus operator.
// Prints a JSON list, of what is wrong with each: errors of the schema, and keys that it does not know.
//
// The schemas leave unknown keys alone, as an API server may. A key that no schema has is one that is never looked at
// while the object is validated, so each mapping notes which of its keys were.

const OPERATOR = "monitoring.coreos.com/v1";

function noting(value, path, mappings) {
  if (Array.isArray(value)) return value.map((item, index) => noting(item, `${path}/${index}`, mappings));
  if (value === null || typeof value !== "object") return value;
  const copy = {};
  for (const key of Object.keys(value)) copy[key] = noting(value[key], `${path}/${key}`, mappings);
  const seen = new Set();
  mappings.push({ path, seen, keys: Object.keys(copy) });
  return new Proxy(copy, {
    get(target, key) {
      seen.add(key);
      return target[key];
    },
  });
}

async function check(object) {
  const { apiVersion, kind } = object;
  const models = apiVersion === OPERATOR ? "@kubernetes-models/prometheus-operator" : "kubernetes-models";
  const { [kind]: Model } = await import(`${models}/${apiVersion}/${kind}`);
  const mappings = [];
  const model = new Model(object);
  for (const key of Object.keys(object)) model[key] = noting(object[key], `/${key}`, mappings);
  try {
    model.validate();
  } catch (error) {
    return [error.message];
  }
  return mappings.flatMap(({ path, seen, keys }) =>
    keys.filter((key) => !seen.has(key)).map((key) => `${path}/${key} is not in the schema`),
  );
}

let text = "";
for await (const chunk of process.stdin) text += chunk;
const found = [];
for (const object of JSON.parse(text)) found.push(await check(object));
console.log(JSON.stringify(found));
